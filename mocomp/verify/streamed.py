"""The original, run by transformers with one layer's weights in memory: all cases go through a layer, and then it is let go.

What is run is transformers' own model in eager mode, on weights that its own code loads; only when they come is ours. Several
cases share a layer's weights by running in step (`turns`), so a checkpoint is read about twice, whatever the cases are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from mocomp.errors import Unsupported
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.nn.model import empty
from mocomp.verify.inputs import Case
from mocomp.verify.layer_weights import LayerWeights
from mocomp.verify.reference import Baseline, Observation, Reference, Routed
from mocomp.verify.released import give_back
from mocomp.verify.trail import layers_of
from mocomp.verify.turns import Turns
from mocomp.weights.checkpoint import Checkpoint

Given = list[tuple[Case, dict[str, np.ndarray]]]
Adjust = Callable[[Reference, str], None]
TOGETHER = 1 << 22
"""Numbers that are rounded at once."""
NOTHING = np.zeros((0, 0), np.float32)


@dataclass
class Passed:
    """A mixture that all cases came through: what its experts did with the most tokens of a case, and with a choice of ours
    that reaches every one; `before` the latter with the weights as the checkpoint has them, where those are others."""

    layer: str
    seen: Routed
    forced: Routed
    before: Routed | None = None


class StreamedReference(Reference):
    """`adjust` changes the weights of one part, by its name, to those that the artifact was to be made of; where there is one,
    cases are run with the checkpoint's own weights besides.

    Raises Unsupported, when it runs, for a model that uses a weight outside of the module that holds it.
    """

    def __init__(self, source: Source, interface: Interface, checkpoint: Checkpoint, adjust: Adjust | None = None):
        super().__init__(empty(source).eval(), interface)
        self.weights, self.adjust = LayerWeights(self.model, source, checkpoint), adjust
        self.parts = parts_of(self.model, self.weights.meta)
        self.turns, self._local = Turns(self._bring), threading.local()
        self._loaded = ""
        self._records: dict[tuple[bool, int], dict[str, Routed]] = {}
        self._before: dict[str, Routed] = {}
        self.weights.release([*self.weights.meta])
        self._staying = self.parts.pop("", [])
        self.weights.load(self._staying)
        for name in self.parts:
            self.model.get_submodule(name).register_forward_pre_hook(partial(self._want, name))

    def follow(self, given: Given) -> Generator[Passed, None, tuple[Baseline, Baseline]]:
        """Each mixture when all cases are through it; returns what was seen (with the checkpoint's own weights, with those that
        the artifact was to be made of). Of x, weights and y of the mixtures nothing is kept."""
        both = [False, True] if self.adjust is not None else [False]
        works = [partial(self._observed, adjusted, case, arrays) for adjusted in both for case, arrays in given]
        steps, done = self.turns.steps(works), set()
        try:
            while True:
                part, adjusted = next(steps)
                found = [] if (part, adjusted) in done else list(self._leave(part, adjusted))
                done.add((part, adjusted))
                self._forget(part, adjusted)
                if adjusted == both[-1]:
                    self._release()
                    self.turns.gone()
                    yield from found
        except StopIteration as end:
            seen: list[Observation] = end.value
        runs = [(case, arrays, observed) for (case, arrays), observed in zip(given * len(both), seen, strict=True)]
        last = Baseline(self.interface, self.experts, runs[-len(given) :], {})
        return (last if self.adjust is None else Baseline(self.interface, self.experts, runs[: len(given)], {})), last

    def round_to(self, dtype: str, within: str = "") -> None:
        """As in the whole model, in place and some rows at a time: what is here is held once, and nobody else's."""
        here = [*self._staying, *self.parts.get(self._loaded, [])]
        for name in [name for name in here if not within or name.startswith(f"{within}.")]:
            parameter = self.model.state_dict(keep_vars=True)[name]
            if not isinstance(parameter, nn.Parameter):
                continue
            rows = parameter.data if parameter.dim() else parameter.data[None]
            for some in rows.split(max(TOGETHER // max(rows[:1].numel(), 1), 1)):
                some.copy_(some.to(getattr(torch, dtype)))

    def _observed(self, adjusted: bool, case: Case, arrays: dict[str, np.ndarray]) -> Observation:
        self._local.adjusted = adjusted
        observed = self.observe(case, arrays)
        if any(np.isnan(values).any() for values in observed.outputs.values()):
            raise Unsupported(
                f"{type(self.model).__name__} gives what is no number when it is run part by part: a part of it may be using "
                "weights of another",
                fix="Prove it whole, on a machine with more memory: mocomp parity DIR.",
            )
        return observed

    @contextmanager
    def _recorded(self) -> Iterator[dict[str, Routed]]:
        with super()._recorded() as routed:
            self._records[self._local.adjusted, id(routed)] = routed
            yield routed

    def _want(self, part: str, module: nn.Module, args: Any) -> None:
        self.turns.want((part, self._local.adjusted))

    def _bring(self, key: tuple[str, bool]) -> None:
        part, adjusted = key
        if self._loaded != part or not adjusted:
            self._release()
            self.weights.load(self.parts[part])
            self._loaded = part
        if adjusted and self.adjust is not None:
            self.adjust(self, part)

    def _release(self) -> None:
        if self._loaded:
            self.weights.release(self.parts[self._loaded])
            self._loaded = ""
            give_back()

    def _leave(self, part: str, adjusted: bool) -> Iterator[Passed]:
        """What is kept of the mixtures of a part, when the first calls of all cases are through it."""
        for layer in self._inside(part):
            routed = [found[layer] for (own, _), found in self._records.items() if own == adjusted and layer in found]
            seen = max(routed, key=lambda r: len(r.x))
            forced = self.every_expert(layer, seen.x, seen.ids.shape[1])
            if self.adjust is not None and not adjusted:
                self._before[layer] = forced
            else:
                yield Passed(layer, seen, forced, self._before.pop(layer, None))

    def _forget(self, part: str, adjusted: bool) -> None:
        for layer in self._inside(part):
            for (own, _), found in self._records.items():
                if own == adjusted and layer in found:
                    found[layer] = replace(found[layer], x=NOTHING, weights=NOTHING, y=NOTHING)

    def _inside(self, part: str) -> list[str]:
        return [layer for layer in self.experts if f"{layer}.".startswith(f"{part}.")]


def parts_of(model: nn.Module, names: Any) -> dict[str, list[str]]:
    """The weights of each part that is brought in alone, by the name of its module: the layers, and whatever else has weights
    and no modules inside. Under no name those that stay."""
    layers = layers_of(model)
    parts: dict[str, list[str]] = {}
    for name in names:
        owner = name.rpartition(".")[0]
        part = next((layer for layer in layers if f"{owner}.".startswith(f"{layer}.")), None)
        if part is None:
            part = "" if any(model.get_submodule(owner).children()) else owner
        parts.setdefault(part, []).append(name)
    return parts
