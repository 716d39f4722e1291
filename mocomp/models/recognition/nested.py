"""Experts nested in one feed-forward: expert i is the first of its units, as many as it is wide (MoNE, Jain 2024).

Units between two successive widths are a band, which the same experts have. Bands overlap nowhere, so they are measured as
experts are, and the weight of a band is the sum of the weights of all experts that are wide enough: those of the experts
are its differences. How wide experts are is asked of the block: units that act alike for every token are of one band.

Dimension letters: T tokens, E experts, H hidden, F units.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor, nn

from mocomp.models.recognition import crowds, measured
from mocomp.models.recognition.calls import Call, Port
from mocomp.models.recognition.candidates import ExpertSet
from mocomp.models.recognition.canonical_block import Mixture
from mocomp.models.recognition.feed_forward import Kind, put, relative, upright, values_of
from mocomp.models.recognition.measured import Draw, Measurement, Shares
from mocomp.models.recognition.mixture import Proof
from mocomp.models.recognition.probing import NotAMixture, tensor_at
from mocomp.models.recognition.rest import Rest
from mocomp.models.recognition.roles import Roles, hypotheses
from mocomp.models.recognition.routing import Routing

MOST_EXPERTS = 16
"""Experts in one feed-forward; halved so often, few have a unit left."""
MOST_TENSORS = 12
"""Parameters of a block that is a router and one feed-forward."""
ALIKE = 1e-9
"""How far, relative, two units may be apart that act alike, in float64."""

Span = tuple[int, int]
"""The first unit, and the one after the last."""


@dataclass(frozen=True)
class Sliced(ExpertSet):
    """Experts that are units of one feed-forward, from and to as `spans` say.

    `axes` are those of the F units in each of `tensors`; -1 where there is none (what is added to the output), of which
    those have their share that start at the first unit.
    """

    spans: tuple[Span, ...] = ()
    axes: tuple[int, ...] = ()

    def stacks(self, block: nn.Module) -> list[dict[str, Tensor]]:
        """The tensors by name, each [1, ...], of one expert after the other; traceable."""
        named = [(name, axis, tensor_at(block, path)) for (name, (path,)), axis in zip(self.tensors, self.axes, strict=True)]
        return [{name: _cut(tensor, axis, span)[None] for name, axis, tensor in named} for span in self.spans]

    def shapes(self, block: nn.Module) -> dict[str, tuple[int, ...]]:
        """The shapes of the feed-forward's tensors: all experts have them, but for how many units they are."""
        return {name: tuple(tensor_at(block, path).shape) for name, (path,) in self.tensors}

    def masked(self, values: dict[str, Tensor], kept: range) -> dict[str, Tensor]:
        """The tensors by path as they are in `values`, but for zeros where no expert of `kept` has units."""
        spans = [self.spans[e] for e in kept]
        return {path: _only(values[path], axis, spans) for (_, (path,)), axis in zip(self.tensors, self.axes, strict=True)}


def _cut(tensor: Tensor, axis: int, span: Span) -> Tensor:
    if axis < 0:
        return tensor if span[0] == 0 else torch.zeros_like(tensor)
    return tensor[span[0] : span[1]] if axis == 0 else tensor[:, span[0] : span[1]]


def _only(tensor: Tensor, axis: int, spans: list[Span]) -> Tensor:
    if axis < 0:
        return tensor * float(any(first == 0 for first, _ in spans))
    mask = torch.zeros(tensor.shape[axis])
    for first, last in spans:
        mask[first:last] = 1.0
    return tensor * (mask if axis == tensor.dim() - 1 else mask[:, None])


def feed_forwards(module: nn.Module) -> list[ExpertSet]:
    """The one feed-forward of each submodule that has a router for it and no other matrix; `count` is the router's."""
    found = [_feed_forward(name, child) for name, child in module.named_modules()]
    return [one for one in reversed(found) if one]


def _feed_forward(name: str, block: nn.Module) -> ExpertSet | None:
    named = []
    for pair in block.named_parameters():  # the first few tell that a block is too large
        named.append(pair)
        if len(named) > MOST_TENSORS:
            return None
    matrices = {n: p for n, p in named if p.dim() > 1}
    if len(matrices) not in (3, 4) or any(p.dim() > 2 for p in matrices.values()):
        return None
    router, *others = sorted(matrices, key=lambda n: matrices[n].numel())
    count, hidden = sorted(matrices[router].shape)
    sizes = {tuple(sorted(matrices[n].shape)) for n in others}
    if not 1 < count <= MOST_EXPERTS or len(sizes) > 1 or hidden not in (sizes_of := sizes.pop()):
        return None
    units = sizes_of[0] if sizes_of[1] == hidden else sizes_of[1]
    owners = {n.rpartition(".")[0] for n in others}
    vectors = [n for n, p in named if p.dim() == 1 and n.rpartition(".")[0] in owners and p.numel() in sizes_of]
    prefix = f"{name}." if name else ""
    tensors = tuple((n, (prefix + n,)) for n in [*others, *vectors])
    return ExpertSet(name, count, False, tensors) if units > count else None


def prove(
    block: nn.Module, call: Call, port: Port, whole: ExpertSet, kind: Kind | None, route: Routing | None
) -> tuple[Mixture, float]:
    """The canonical form of a block whose experts are nested in the feed-forward `whole`, and its error with the block's own
    weights; `kind` and `route` are tried first. Raises NotAMixture, with the nearest miss."""
    missed = NotAMixture("it has no feed-forward of hidden states")
    draws = measured.draws(block, call, port, whole.count)
    draws += crowds.several(block, call, port)
    for axes in _axes(block, whole, port.x(call.args, call.kwargs).shape[-1], draws[0], port):
        try:
            widths = _widths(block, port, whole, axes, draws)
            return _proven(block, call, port, _bands(whole, axes, widths), kind, route)
        except NotAMixture as reason:
            missed = max(missed, reason, key=lambda one: one.depth)
    raise missed


def _axes(block: nn.Module, whole: ExpertSet, hidden: int, draw: Draw, port: Port) -> list[tuple[int, ...]]:
    """Which axes may be those of the units, the likeliest first."""
    out = measured.run(block, port, draw).shape[-1]
    found = hypotheses(whole.shapes(block), (hidden, out), upright(block, whole))
    readings = [tuple(_axis(roles, name) for name, _ in whole.tensors) for roles in found if not roles.fused]
    return list(dict.fromkeys(readings))


def _axis(roles: Roles, name: str) -> int:
    if name == roles.bias_down:
        return -1
    if name == roles.down:
        return 0 if name in roles.transposed else 1
    return 1 if name in roles.transposed else 0


def _bands(whole: ExpertSet, axes: tuple[int, ...], widths: list[int]) -> Sliced:
    spans = tuple(zip([0, *widths], widths, strict=False))
    return Sliced(whole.holder, len(widths), False, whole.tensors, spans=spans, axes=axes)


def _widths(block: nn.Module, port: Port, whole: ExpertSet, axes: tuple[int, ...], draws: list[Draw]) -> list[int]:
    """How many units the experts have, rising, if they are nested.

    With one unit that is not zero, the same wherever it stands, a block gives the same where the same experts have it.
    """
    values = values_of(block, whole)
    generator = torch.Generator().manual_seed(7)
    unit = {path: torch.randn(value.shape, generator=generator, dtype=torch.float64) for path, value in values.items()}
    paths = [path for _, (path,) in whole.tensors]
    units = next(values[path].shape[axis] for path, axis in zip(paths, axes, strict=True) if axis >= 0)

    @cache
    def given(place: int) -> Tensor:
        put(block, {path: _alone(unit[path], axis, place) for path, axis in zip(paths, axes, strict=True)})
        return torch.cat([measured.run(block, port, draw).flatten() for draw in draws])

    try:
        widths = [*_ends(lambda a, b: relative(given(a), given(b)) < ALIKE, 0, units - 1), units]
        if relative(given(units - 1), given(units)) < ALIKE:  # units that no expert has
            widths.pop()
    finally:
        put(block, values)
    if not 1 < len(widths) <= MOST_EXPERTS:
        raise NotAMixture("its units are of no few nested experts")
    return widths


def _alone(unit: Tensor, axis: int, place: int) -> Tensor:
    """A tensor of zeros with one unit in it, at `place`; none there where `place` is F."""
    made = torch.zeros_like(unit)
    if axis >= 0 and place < unit.shape[axis]:
        made.select(axis, place).copy_(unit.select(axis, 0))
    return made


def _ends(alike: Callable[[int, int], bool], first: int, last: int, most: int = MOST_EXPERTS) -> Iterator[int]:
    """The units between `first` and `last` that differ from the one before, by halving."""
    left = [(first, last)]
    found = 0
    while left and found <= most:
        low, high = left.pop()
        if alike(low, high):
            continue
        if high - low == 1:
            found += 1
            yield high
            continue
        middle = (low + high) // 2
        left += [(middle, high), (low, middle)]


def _proven(
    block: nn.Module, call: Call, port: Port, bands: Sliced, kind: Kind | None, route: Routing | None
) -> tuple[Mixture, float]:
    """The proof with the widest expert as the first, and else as the last."""
    try:
        return _Proof(block, call, port, bands).run(kind, route)
    except NotAMixture as missed:
        try:
            return _Proof(block, call, port, bands, rising=True).run(kind, route)
        except NotAMixture as reason:
            raise max(missed, reason, key=lambda one: one.depth) from None


@dataclass
class _Proof(Proof):
    """As for any experts, with bands in their place until their weights are known; `experts` are the bands."""

    rising: bool = False

    def _shares(self, kind: Kind, runs: list[Measurement]) -> list[Shares]:
        return [self._differences(one) for one in super()._shares(kind, runs)]

    def _differences(self, bands: Shares) -> Shares:
        """Weights of bands [T, E] -> those of experts [T, E], in their order."""
        none = torch.zeros_like(bands.weights[:, :1])
        weights = bands.weights - torch.cat([bands.weights[:, 1:], none], 1)
        seen = bands.seen & torch.cat([bands.seen[:, 1:], torch.ones_like(bands.seen[:, :1])], 1)
        weights = torch.where(seen, weights, 0.0)
        return Shares(bands.draw, *((weights, seen) if self.rising else (weights.flip(1), seen.flip(1))))

    def _final(self, kind: Kind, route: Routing, other: Rest, draws: list[Draw]) -> tuple[Mixture, float]:
        assert isinstance(self.experts, Sliced)
        spans = tuple((0, last) for _, last in self.experts.spans)
        nested = replace(self.experts, spans=spans if self.rising else spans[::-1])
        return Proof(self.block, self.call, self.port, nested)._final(kind, route, other, draws)
