"""What a model leaves behind on its way through its layers: what each gives, and which experts it chose.

The original is watched by hooks on its modules; `program_trail` does the same for a program, `artifact_trail` for an artifact.
Dimension letters: B batch, S sequence, T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from mocomp.targets import Arrays
from mocomp.verify.choices import Choice
from mocomp.verify.inputs import Case
from mocomp.verify.reference import Baseline, Reference, Routed

BEFORE = "before "
"""Stands before the name of a stack's first layer, for what comes into it."""
OUTPUTS = "outputs"
"""The place behind all layers."""


@dataclass
class Call:
    """One call of a model: its outputs by name, what each layer gives by the layer's, what comes into each mixture [T, H] and
    what it chose by the mixture's."""

    outputs: Arrays = field(default_factory=dict)
    layers: Arrays = field(default_factory=dict)
    x: Arrays = field(default_factory=dict)
    chosen: dict[str, Choice] = field(default_factory=dict)


@dataclass
class Asked:
    """A case with its inputs, and what the original did: a call for what is past, if there is any, and one for the rest."""

    case: Case
    given: Arrays
    calls: list[Call]

    @property
    def masks(self) -> list[np.ndarray]:
        """For each call, which tokens [B, S] are no padding."""
        whole = self.given.get("attention_mask", np.ones((self.case.batch, self.case.total))).astype(bool)
        past = [whole[:, : self.case.past]] if self.case.past else []
        return [*past, whole[:, self.case.past :]]


@dataclass
class Trail:
    """All that the original was asked; `layers` in the order in which they run, `mixtures` with their number of experts,
    `forced` what each of them gives for a choice of ours that reaches every expert."""

    layers: list[str]
    mixtures: dict[str, int]
    asked: list[Asked]
    forced: dict[str, Routed]

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(number of dimensions, width of the last) of what each layer gives."""
        return {name: (value.ndim, value.shape[-1]) for name, value in self.asked[0].calls[-1].layers.items()}


def follow(reference: Reference, given: list[tuple[Case, Arrays]]) -> Trail:
    """The trail of the original over cases, each with its inputs."""
    asked, order = [], {}
    for case, arrays in given:
        with _watched(reference.model) as seen:
            observed = reference.observe(case, arrays)
        count = 2 if case.past else 1
        routed = [observed.routed_before, observed.routed][-count:]
        calls = [Call(x=_x(found), chosen={n: Choice(r.ids) for n, r in found.items()}) for found in routed]
        calls[-1].outputs = observed.outputs
        for name, values in seen.items():
            times = len(values) // count  # a layer that shares its weights with others runs more than once
            for i, call in enumerate(calls):
                call.layers[name] = values[(i + 1) * times - 1]
        order |= dict.fromkeys(seen)
        asked.append(Asked(case, arrays, calls))
    forced = {}
    for name in reference.experts:
        call = _longest(asked, name)
        forced[name] = reference.every_expert(name, call.x[name], call.chosen[name].ids.shape[1])
    return Trail(list(order), reference.experts, asked, forced)


def layers_of(model: nn.Module) -> list[str]:
    """The modules that stand in a list which is in no other list, by name: the layers of each stack."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    return [f"{name}.{i}" for name in outer for i in range(len(model.get_submodule(name)))]  # type: ignore[arg-type]


@contextmanager
def _watched(model: nn.Module) -> Iterator[dict[str, list[np.ndarray]]]:
    """What each layer gives while inside, and what comes into the first of each stack, in the order in which they ran."""
    seen: dict[str, list[np.ndarray]] = {}

    def keep(name: str, value: Any) -> None:
        tensor = value[0] if isinstance(value, (tuple, list)) else value
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() > 1:
            seen.setdefault(name, []).append(tensor.detach().float().clone().numpy())

    def entering(name: str) -> Any:
        return lambda module, args, kwargs: keep(name, next(iter((*args, *kwargs.values())), None))

    def leaving(name: str) -> Any:
        return lambda module, args, output: keep(name, output)

    hooks = []
    for name in layers_of(model):
        module = model.get_submodule(name)
        hooks.append(module.register_forward_hook(leaving(name)))
        if name.endswith(".0"):
            hooks.append(module.register_forward_pre_hook(entering(BEFORE + name), with_kwargs=True))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _x(routed: dict[str, Routed]) -> Arrays:
    return {name: found.x for name, found in routed.items()}


def baseline_on(reference: Reference, given: list[tuple[Case, Arrays]]) -> Baseline:
    """What the verdict compares with, on these cases in place of those that the kind of model calls for."""
    runs = [(case, arrays, reference.observe(case, arrays)) for case, arrays in given]
    longest = {name: max((seen.routed[name] for *_, seen in runs), key=lambda r: len(r.x)) for name in reference.experts}
    forced = {name: reference.every_expert(name, seen.x, seen.ids.shape[1]) for name, seen in longest.items()}
    return Baseline(reference.interface, reference.experts, runs, forced)


def _longest(asked: list[Asked], mixture: str) -> Call:
    return max((ask.calls[-1] for ask in asked), key=lambda call: len(call.x[mixture]))
