"""Parity of a user's module: outputs by name at other sizes than the traced ones, and the choices of recognised mixtures.

Of a module nothing says which tokens an output belongs to. So where rounding chose another expert the whole case is drawn
again, and only cases in which nothing flipped are judged by their outputs; choices are always judged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mocomp import terminal
from mocomp.errors import BadInput
from mocomp.models.user.exported import Exported
from mocomp.models.user.loading import Looked
from mocomp.models.user.running import run
from mocomp.models.user.sizes import Sized, inputs_at
from mocomp.models.user.source import ModuleSource
from mocomp.targets import Arrays, Runner, Target
from mocomp.verify import stored
from mocomp.verify.converted import Converted
from mocomp.verify.experts_alone import experts_error
from mocomp.verify.latency import measure, of_artifact
from mocomp.verify.measures import relative_error
from mocomp.verify.module_reference import Given, ModuleReference, Seen
from mocomp.verify.parity import CaseResult, LayerResult, Parity, conclude, inner_values, judge_choice
from mocomp.verify.tolerance import tolerance_of

DRAWS = 3
"""Times that a case is drawn, where rounding chooses other experts."""


def verify_module(
    made: Converted, source: ModuleSource, looked: Looked, seed: int, latency: dict[str, Any] | None = None
) -> Parity:
    """An artifact against the module `source` that it was made of, with the artifact's weights where it has them in
    other types. Where there is a `latency` to fill in, both are timed as well."""
    if latency is not None and not isinstance(source.module, Exported):  # which torch interprets, and slowly
        latency |= _timed(source, looked, made.target, made.directory)
    reference = ModuleReference(source, looked)
    with terminal.phase("parity: running the module and the artifact"):
        for sized in looked.sizes.runs[:1]:
            reference.observe(inputs_at(source, sized.sizes, seed))  # so that it knows its mixtures
        stored.put(reference, made.target, made.directory, made.artifact)
        judged = _Judged(reference, made)
        for sized in looked.sizes.runs:
            judged.case(sized, seed)
        parity = judged.verdict(seed)
    parity.notes += looked.sizes.notes()
    return parity


class _Judged:
    """The cases so far, and what they showed of each mixture."""

    def __init__(self, reference: ModuleReference, made: Converted):
        self.reference, self.target, self.directory = reference, made.target, made.directory
        self.tolerance = tolerance_of(made.target, made.artifact)
        mixtures = made.artifact.mixtures
        known = {m.layer for m in mixtures if m.layer.partition("@")[0] in reference.found}
        self.mixtures = [m for m in mixtures if m.layer in known]
        self.unknown = [m.layer for m in mixtures if m.layer not in known]
        self.runner: Runner = made.target.open(made.directory, inner_values(self.mixtures), exact=True)
        self.layers = {m.layer: LayerResult(m.layer) for m in self.mixtures}
        self.reached: dict[str, set[int]] = {m.layer: set() for m in self.mixtures}
        self.longest: dict[str, Given] = {}
        self.results: list[CaseResult] = []
        self.notes: dict[str, None] = {}

    def case(self, sized: Sized, seed: int) -> None:
        """One case, drawn again where rounding chose other experts."""
        source = self.reference.source
        for draw in range(DRAWS):
            example = sized.sizes == source.sizes and not draw
            inputs = source.inputs if example else inputs_at(source, sized.sizes, seed + draw)
            seen = self.reference.observe(inputs)
            got = self._run(inputs)
            if not self._flipped(seen, got):
                self.results.append(CaseResult(sized.name, self._errors(seen.outputs, got), 1, 1))
                return
        self.results.append(CaseResult(sized.name, {}, 1, 0))

    def _flipped(self, seen: Seen, got: Arrays) -> bool:
        """Whether some mixture chose other experts; those behind it are not judged then, for what comes to them is another
        thing."""
        flipped = False
        for m in self.mixtures:
            given = seen.given.get(m.layer)
            if given is None:
                continue
            routed, layer = given.routed(), self.layers[m.layer]
            layer.experts = given.bank[0].shape[0]
            self.reached[m.layer] |= set(np.unique(routed.ids).tolist())
            if m.layer not in self.longest or len(given.x) >= len(self.longest[m.layer].x):
                self.longest[m.layer] = given
            if flipped:
                layer.unjudged += len(routed.ids)
                continue
            valid = np.ones(len(routed.ids), bool)
            flipped = bool(judge_choice(layer, m, routed, got, valid, self.tolerance.margin).any())
        return flipped

    def _errors(self, expected: Arrays, got: Arrays) -> dict[str, float]:
        found = {name: got.get(name) for name in expected}
        return {n: float("inf") if a is None else self._error(n, a, expected[n]) for n, a in found.items()}

    def _run(self, inputs: Mapping[str, Tensor]) -> Arrays:
        try:
            return self.runner.run({name: tensor.numpy() for name, tensor in inputs.items()})
        except KeyError as error:
            what = f"it takes an input {error}, which the module has not"
            raise BadInput(what, where=str(self.directory), fix="Convert again.") from error

    def _error(self, name: str, actual: np.ndarray, expected: np.ndarray) -> float:
        """Relative where they are floats; whole numbers are equal or they are not."""
        if actual.dtype != expected.dtype:
            return float("inf")
        if not np.issubdtype(expected.dtype, np.floating):
            return 0.0 if np.array_equal(actual, expected) else float("inf")
        odd = ~np.isfinite(expected)
        if not odd.any() or actual.shape != expected.shape:
            return relative_error(actual, expected)
        self.notes[f"{name} holds NaN or infinity in the original, too"] = None
        if odd.all() or not np.array_equal(actual[odd], expected[odd], equal_nan=True):
            return float("inf")
        return relative_error(np.where(odd, 0, actual), np.where(odd, 0, expected))

    def verdict(self, seed: int) -> Parity:
        """What all cases, and the experts of each mixture alone, come to."""
        for m in self.mixtures:
            if (longest := self.longest.get(m.layer)) is None:
                self.notes[f"{m.layer}: no case ran it"] = None
                continue
            self.layers[m.layer].reached = len(self.reached[m.layer])
            fed = [longest.routed(), self.reference.forced(longest)]
            self.layers[m.layer].experts_error = experts_error(self.target, self.directory, m, fed, exact=True)
        parity = Parity(self.results, list(self.layers.values()), self.tolerance, seed)
        parity.notes += [f"{layer}: not a block that was recognised, so only outputs were compared" for layer in self.unknown]
        parity.notes += self.notes
        conclude(parity)
        skipped = [result.name for result in self.results if not result.clean]
        if skipped and len(skipped) < len(self.results):
            parity.notes.append(f"not compared, since rounding chose other experts in each draw: {'; '.join(skipped)}")
        return parity


def _timed(source: ModuleSource, looked: Looked, target: Target, directory: Path) -> dict[str, Any]:
    """Brief timings of both on the example, and on the largest inputs that were looked at."""
    largest = max(looked.sizes.runs, key=lambda sized: sum(sized.sizes.values()))
    loads: dict[str, dict[str, Tensor]] = {"example": source.inputs}
    if largest is not looked.sizes.runs[0]:
        loads[largest.name] = inputs_at(source, largest.sizes, 0)
    original = {name: asdict(measure(lambda given=given: run(source, given), brief=True)) for name, given in loads.items()}
    arrays = {name: {key: tensor.numpy() for key, tensor in given.items()} for name, given in loads.items()}
    return {"original": original, "artifact": of_artifact(target.open(directory), arrays)}
