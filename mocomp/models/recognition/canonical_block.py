"""A mixture in canonical form: `mocomp::route` and `mocomp::experts` on the block's own parameters, and the rest.

Dimension letters: T tokens, E experts, K chosen, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mocomp.ir import ops  # noqa: F401  (registers the ops)
from mocomp.ir.specs import spell
from mocomp.models.recognition.calls import Port, leaves, rebuilt
from mocomp.models.recognition.candidates import ExpertSet
from mocomp.models.recognition.feed_forward import Kind, relative
from mocomp.models.recognition.measured import Draw
from mocomp.models.recognition.rest import Rest
from mocomp.models.recognition.roles import squared
from mocomp.models.recognition.routing import Routing

UNREAD = float("nan")
"""What stands where a block gave something else than hidden states that the canonical form does not compute."""


@dataclass(frozen=True)
class Aside:
    """A leaf of a block's result besides the hidden states: the logits, a constant, or nothing that anybody may read."""

    logits: bool = False
    constant: Any = UNREAD


@dataclass(frozen=True)
class Mixture:
    """A whole block: y = sum over K of weight * expert(x), plus the rest."""

    port: Port
    experts: ExpertSet
    kind: Kind
    routing: Routing
    rest: Rest
    example: Any = None
    asides: dict[int, Aside] = field(default_factory=dict)

    def route(self, block: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [.., H] -> ids [T, K], weights [T, K]; traceable."""
        logits, own = self.routing.logits(block, x), self.routing.vectors(block)
        ids, weights = torch.ops.mocomp.route(logits, own, spell(self.routing.router))
        return ids, self.routing.scaled(block, x, weights)

    def routed(self, block: nn.Module, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        """What the experts give, x [T, H] -> [T, H'], where H' is H in most; traceable."""
        bank = self.kind.bank(block, self.experts)
        given, wanted = bank.w_in.shape[2], bank.w_out.shape[1]
        b = squared(bank)
        x = F.pad(x, (0, wanted - given)) if wanted > given else x
        tensors = (b.w_in, b.b_in, b.w_out, b.b_out)
        y = torch.ops.mocomp.experts(x, ids, weights.to(x.dtype), *tensors, spell(self.kind.expert))
        return y if wanted >= given else y[:, :wanted]

    def forward(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the block's own forward gives, with the same structure; traceable."""
        x = self.port.x(args, kwargs)
        y = self.routed(block, x.reshape(-1, x.shape[-1]), *self.route(block, x))
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return self._packed(block, x, self.rest.add(block, x, y, self.routing.lost_by(block) or torch.zeros_like))

    def observe(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [T, H], ids [T, K], weights [T, K], y [T, H] of the routed experts alone."""
        x = self.port.x(args, kwargs)
        ids, weights = self.route(block, x)
        flat = x.reshape(-1, x.shape[-1])
        return flat, ids, weights, self.routed(block, flat, ids, weights)

    def _packed(self, block: nn.Module, x: Tensor, y: Tensor) -> Any:
        if isinstance(self.example, Tensor):
            return y
        values = [*leaves(self.example)]
        for i, aside in self.asides.items():
            values[i] = self.routing.scores.scores(block, x) if aside.logits else _constant(aside.constant, x)
        values[self.port.leaf] = y
        return rebuilt(self.example, values)


def _constant(value: Any, x: Tensor) -> Any:
    return torch.full((), value, dtype=x.dtype, device=x.device) if isinstance(value, float) else value


def asides(block: nn.Module, port: Port, routing: Routing, draws: list[Draw]) -> tuple[Any, dict[int, Aside]]:
    """(a result of the block without its tensors, its leaves besides the hidden states) from what draws give."""
    results = [block(*draw.args, **draw.kwargs) for draw in draws]
    if isinstance(results[0], Tensor):
        return torch.empty(0), {}
    columns = list(zip(*map(leaves, results), strict=True))
    found = {i: _aside(block, routing, draws, values) for i, values in enumerate(columns) if i != port.leaf}
    blank = [None if isinstance(value, Tensor) else value for value in leaves(results[0])]
    return rebuilt(results[0], blank), found


def _aside(block: nn.Module, routing: Routing, draws: list[Draw], values: tuple[Any, ...]) -> Aside:
    if not all(isinstance(value, Tensor) for value in values):
        same = all(type(value) is type(values[0]) and value == values[0] for value in values)
        return Aside(constant=values[0]) if same and not isinstance(values[0], float) else Aside()
    if all(value.dim() == 0 and torch.equal(value, values[0]) for value in values):
        return Aside(constant=float(values[0]))
    logits = [routing.scores.scores(block, draw.x) for draw in draws]
    if all(value.shape == z.shape and relative(value, z) < 1e-9 for value, z in zip(values, logits, strict=True)):
        return Aside(logits=True)
    return Aside()


def error(block: nn.Module, form: Mixture, draws: list[Draw]) -> float:
    """How far the canonical form is from the block's own forward, relative; the largest over all draws."""
    worst = 0.0
    for draw in draws:
        expected = form.port.y(block(*draw.args, **draw.kwargs))
        actual = form.port.y(form.forward(block, draw.args, draw.kwargs))
        worst = max(worst, relative(actual, expected))
    return worst
