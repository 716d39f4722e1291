"""Any two models side by side, sources or artifacts: what they give for the same inputs, and which experts they choose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from mocomp.errors import BadInput
from mocomp.models.interface import Interface
from mocomp.targets import Arrays
from mocomp.verify.inputs import Case
from mocomp.verify.judging import LayerError, Pair, error_of, judge_choice
from mocomp.verify.measures import distribution
from mocomp.verify.parity import CaseResult
from mocomp.verify.tolerance import Tolerance
from mocomp.verify.trail import Asked, Call

Given = list[tuple[Case, Arrays]]


@dataclass
class Side:
    """One of the two: what to call it, what it takes, how near to the truth it is, and how to run it. `formats` are those of
    its weights in few bits, with how many weights have each."""

    name: str
    interface: Interface
    tolerance: Tolerance
    calls: Callable[[Given], list[list[Call]]]
    formats: dict[str, int] = field(default_factory=dict)


@dataclass
class Difference:
    """What two sides make of the same inputs; errors are relative to the first. `layers` are the mixtures in which both tell
    what they chose."""

    first: str
    second: str
    cases: list[CaseResult]
    layers: list[LayerError]
    tolerance: Tolerance
    inputs: str
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def worst(self) -> float:
        return max((error for case in self.cases for error in case.errors.values()), default=0.0)

    @property
    def agreement(self) -> float | None:
        """Share of token choices that are the same; None where not both tell."""
        tokens = sum(layer.tokens for layer in self.layers)
        other = sum(layer.flips + layer.flips_within_margin for layer in self.layers)
        return 1.0 - other / tokens if tokens else None


def refuse_unlike(a: Side, b: Side) -> None:
    """Raises BadInput for two that cannot be asked the same."""
    own, other = (
        (side.interface.kind, sorted(n for n in side.interface.inputs if not n.startswith("past_key_values")))
        for side in (a, b)
    )
    if own != other:
        told = " and ".join(
            f"{side.name} is a {kind} of {', '.join(names)}" for side, (kind, names) in zip((a, b), (own, other), strict=True)
        )
        raise BadInput(f"they cannot be asked the same: {told}")
    if a.interface.vocabulary != b.interface.vocabulary:
        sizes = a.interface.vocabulary, b.interface.vocabulary
        raise BadInput(f"{a.name} knows {sizes[0]} tokens and {b.name} {sizes[1]}", fix="Compare models of one tokenizer.")
    if not _shared(a, b):
        raise BadInput(f"{a.name} gives {', '.join(a.interface.outputs)}, {b.name} {', '.join(b.interface.outputs)}")


def between(a: Side, b: Side, given: Given, words: str) -> Difference:
    """Run one, then the other, and compare; so memory holds one of them at a time.

    The tolerance is the looser of the two. Sequences in which rounding may have chosen another expert do not count.
    """
    refuse_unlike(a, b)
    limit = max(a.tolerance, b.tolerance, key=lambda tolerance: tolerance.outputs)
    first = a.calls(given)
    second = b.calls(given)
    asked = [Asked(case, arrays, calls) for (case, arrays), calls in zip(given, first, strict=True)]
    known = [name for name in first[0][-1].chosen if name in second[0][-1].chosen]
    pairs = _pairs(asked, second)
    layers = [_chosen(name, pairs, limit) for name in known]
    results = [_result(pair, _shared(a, b)) for pair in pairs]
    if any(layer.flips for layer in layers) or any(e > limit.outputs for r in results for e in r.errors.values()):
        # they differ for other reasons than rounding, which then excuses nothing
        layers = [_chosen(name, _pairs(asked, second), limit) for name in known]
        results = [_result(pair, _shared(a, b)) for pair in _pairs(asked, second)]
    difference = Difference(a.name, b.name, results, layers, limit, words)
    if a.formats != b.formats:
        difference.notes.append("; ".join(f"{side.name} holds {_told(side.formats)}" for side in (a, b)))
    if not known and (first[0][-1].chosen or second[0][-1].chosen):
        difference.notes.append("not both tell which experts they chose, so only outputs were compared")
    _conclude(difference)
    return difference


def _pairs(asked: list[Asked], calls: list[list[Call]]) -> list[Pair]:
    """Each case with what the second side did, all sequences counting."""
    return [Pair(ask, other, np.ones(ask.case.batch, bool)) for ask, other in zip(asked, calls, strict=True)]


def _chosen(name: str, pairs: list[Pair], limit: Tolerance) -> LayerError:
    """How often one mixture chose other experts."""
    found = LayerError(name)
    judge_choice(found, name, pairs, limit)
    return found


def _shared(a: Side, b: Side) -> list[str]:
    return [n for n in a.interface.outputs if n in b.interface.outputs and not n.startswith("present")]


def _result(pair: Pair, names: list[str]) -> CaseResult:
    """One case, judged on the sequences in which nothing flipped by rounding; the distributions on all."""
    errors = {n: e for n in names if (e := error_of([pair], lambda call, n=n: call.outputs.get(n))) is not None}
    result = CaseResult(pair.ask.case.name, errors, pair.ask.case.batch, int(pair.clean.sum()))
    expected, found = pair.ask.calls[-1].outputs.get("logits"), pair.calls[-1].outputs.get("logits")
    if expected is not None and found is not None and expected.ndim == 3 and expected.shape == found.shape:
        mask = pair.ask.masks[-1]
        result.top1, result.kl = distribution(found[mask], expected[mask])
    return result


def _told(formats: dict[str, int]) -> str:
    return ", ".join(f"{count} weights in {form}" for form, count in formats.items()) or "floats"


def _conclude(found: Difference) -> None:
    limit = found.tolerance
    for case in found.cases:
        for name, error in case.errors.items():
            if not error <= limit.outputs:
                found.failures.append(f"{case.name}: {name} off by {error:.1e}, tolerance {limit.outputs:.0e}")
    for layer in found.layers:
        if layer.flips:
            found.failures.append(
                f"{layer.layer}: {layer.flips} of {layer.tokens} tokens chose other experts, beyond the margin"
            )
    if not any(case.clean for case in found.cases):
        found.failures.append("in every sequence some expert flipped, so nothing could be compared end to end")
