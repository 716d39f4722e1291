"""Experts that are given their tokens already sorted: expert e computes slice e of the input.

That is what remains canonical of a block whose dispatch is no router's (slots, capacities, exchanges between devices):
everything around it is traced as it stands, so it is exact whatever the dispatch does.

Dimension letters: E experts, C tokens of one, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mocomp.experts import Expert
from mocomp.ir import ops  # noqa: F401  (registers the ops)
from mocomp.ir.specs import spell
from mocomp.models.canonical import Bank
from mocomp.models.recognition.calls import Call, Port, leaves, rebuilt
from mocomp.models.recognition.candidates import ExpertSet
from mocomp.models.recognition.feed_forward import Kind, apply, identify, randomise, relative
from mocomp.models.recognition.measured import draws, run
from mocomp.models.recognition.probing import NotAMixture


@dataclass(frozen=True)
class Dispatched:
    """Hidden states [.., E, .., H] whose slice e goes through expert e; E is one axis, or several side by side."""

    port: Port
    experts: ExpertSet
    kind: Kind
    axes: tuple[int, ...]
    example: Any = None

    def forward(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the block's own forward gives; traceable."""
        x = self.port.x(args, kwargs)
        y = self.observe(block, args, kwargs)[3].reshape(x.shape)
        if isinstance(self.example, Tensor):
            return y
        values = [*leaves(self.example)]
        values[self.port.leaf] = y
        return rebuilt(self.example, values)

    def observe(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [T, H] of all slots, ids [T, 1] of the slices, weights 1, y [T, H]."""
        x = self.port.x(args, kwargs)
        shape = [x.shape[axis] if axis in self.axes else 1 for axis in range(x.dim() - 1)]
        ids = torch.arange(self.experts.count, device=x.device).reshape(shape).expand(x.shape[:-1]).reshape(-1, 1)
        flat = x.reshape(-1, x.shape[-1])
        weights = torch.ones_like(flat[:, :1])
        b = self.kind.bank(block, self.experts)
        tensors = (b.w_in, b.b_in, b.w_out, b.b_out)
        return flat, ids, weights, torch.ops.mocomp.experts(flat, ids, weights, *tensors, spell(self.kind.expert))


def recognise(block: nn.Module, call: Call, port: Port, experts: ExpertSet, first: Kind | None) -> tuple[Dispatched, float]:
    """The dispatched form of a block of which `experts` are part, and its error. Leaves the block with other weights.

    Raises NotAMixture when no axis of what it is given is the experts'.
    """
    x = port.x(call.args, call.kwargs)
    places = [tuple(range(first, last)) for first in range(x.dim() - 1) for last in range(first + 1, x.dim())]
    places = [axes for axes in places if x.shape[axes[0] : axes[-1] + 1].numel() == experts.count]
    if not places:
        raise NotAMixture(f"no axis of its input {list(x.shape)} is that of {experts.count} experts")
    if port.y(call.result).shape != x.shape:
        raise NotAMixture("it gives another width than it takes")
    if any(value is not None for i, value in enumerate(leaves(call.result)) if i != port.leaf):
        raise NotAMixture("it gives more than hidden states")
    randomise(block, experts, torch.Generator().manual_seed(5))
    missed = NotAMixture("")
    for axes in places:
        made = draws(block, call, port, experts.count, fixed=axes)
        given = [_by_expert(run(block, port, draw), axes) for draw in made]
        rows = [_by_expert(draw.x, axes) for draw in made]

        def error_of(expert: Expert, bank: Bank, rows: list[Tensor] = rows, given: list[Tensor] = given) -> float:
            pairs = zip(rows, given, strict=True)
            return max(relative(apply(expert, bank, x), y) for x, y in pairs)

        try:
            kind, error = identify(block, experts, x.shape[-1], x.shape[-1], error_of, first)
        except NotAMixture as reason:
            missed = reason
            continue
        example = call.result if isinstance(call.result, Tensor) else rebuilt(call.result, [None] * len(leaves(call.result)))
        return Dispatched(port, experts, kind, axes, example), error
    raise missed


def _by_expert(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """[.., E, .., H] -> [E, N, H]."""
    count = x.shape[axes[0] : axes[-1] + 1].numel()
    return x.movedim(axes, tuple(range(len(axes)))).reshape(count, -1, x.shape[-1])
