"""A modality-grouped mixture of experts as a module, in the plainest torch that trains; what the graph's ops must equal.

Dimension letters: T tokens, H hidden, F expert width, E experts of all groups, K chosen, M modalities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.plans.modality import Modality
from mocomp.plans.plan import MixturePlan


@dataclass
class TokenModality:
    """The modality of each token of the call that is running, told to all mixtures of a model by its hook.

    `ids` [B, S] where the call has tokens; where it has none (images), the modality goes by the position in a mixture's x.
    """

    source: Modality | None = None
    ids: Tensor | None = None

    def of(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> modalities [T]."""
        if self.ids is not None:
            return self.ids.reshape(-1)
        assert self.source is not None, "a grouped mixture was called outside of its model"
        return self.source.of(torch.arange(x.shape[1], device=x.device)).repeat(x.shape[0])


class Router(nn.Module):
    """x [T, H] -> logits [T, E]; the kind of routing is the mixture's."""

    weight: Tensor
    bias: Tensor | None
    correction: Tensor | None
    aux_in: Tensor
    aux_out: Tensor

    def __init__(self, plan: MixturePlan, shapes: dict[str, tuple[int, ...]]):
        super().__init__()
        self.plan = plan
        _declare(self, "router", shapes)

    def forward(self, x: Tensor) -> Tensor:
        logits = F.linear(x, self.weight, self.bias)
        return self.plan.kind.inner(logits).abs() if self.plan.scoring == "neurons" else logits

    def auxiliary(self, x: Tensor) -> Tensor:
        """x [T, H] -> logits [T, E] of the causal router that stands in for expert choice (MoMa, section 2.4)."""
        return F.linear(F.silu(F.linear(x, self.aux_in)), self.aux_out)


class Experts(nn.Module):
    """y [T, H] = sum over K of weights[t, k] * expert[ids[t, k]](x [T, H]); only experts with tokens are run."""

    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    b_out: Tensor | None

    def __init__(self, plan: MixturePlan, shapes: dict[str, tuple[int, ...]]):
        super().__init__()
        self.kind, self.num_experts = plan.kind, plan.experts
        _declare(self, "experts", shapes)

    def forward(self, x: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for e in ids[weights != 0].unique().tolist():
            token, slot = ((ids == e) & (weights != 0)).nonzero(as_tuple=True)
            h = F.linear(x[token], self.w_in[e], None if self.b_in is None else self.b_in[e])
            out = F.linear(self.kind.inner(h), self.w_out[e], None if self.b_out is None else self.b_out[e])
            y = y.index_add(0, token, out * weights[token, slot, None].to(out.dtype))
        return y


class Shared(nn.Module):
    """The expert that every token goes through, without a router."""

    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    b_out: Tensor | None

    def __init__(self, plan: MixturePlan, shapes: dict[str, tuple[int, ...]]):
        super().__init__()
        self.kind = plan.kind
        _declare(self, "shared", shapes)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.kind.inner(F.linear(x, self.w_in, self.b_in)), self.w_out, self.b_out)


class Mixture(nn.Module):
    """A plan as a module: x [..., H] -> y [..., H]. `logits` [T, E] of the last call are kept for losses on them.

    In place of a model's experts it is called with that model's own choice as well, and does not use it.
    """

    def __init__(self, plan: MixturePlan, modality: TokenModality | None = None):
        super().__init__()
        shapes = plan.shapes()
        self.plan, self.modality = plan, modality or TokenModality()
        self.router, self.experts = Router(plan, shapes), Experts(plan, shapes)
        self.shared = Shared(plan, shapes) if plan.shared else None
        self.logits: Tensor | None = None

    def forward(self, x: Tensor, *choice_of_the_caller: Any) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        ids, weights = self.route(flat, self._reachable(x))
        y = self.experts(flat, ids, weights)
        if self.shared is not None:
            y = y + self.shared(flat)
        return y.reshape(x.shape)

    def _reachable(self, x: Tensor) -> Tensor | None:
        allowed = self.plan.allowed()
        return None if allowed is None else allowed.to(x.device)[self.modality.of(x)]

    def route(self, x: Tensor, reachable: Tensor | None) -> tuple[Tensor, Tensor]:
        """x [T, H], reachable [T, E] bool -> ids [T, K], weights [T, K], each token among the experts it may reach."""
        logits = self.router(x)
        if reachable is not None:
            logits = torch.where(reachable, logits, float("-inf"))
        self.logits = logits
        if self.plan.auxiliary and not self.training:
            return self.plan.routing_of_inference.choose(logits, self.router.auxiliary(x))
        correction = [] if self.router.correction is None else [self.router.correction]
        return self.plan.routing.choose(logits, *correction)


OPTIONAL = {
    "router": ("bias", "correction", "aux_in", "aux_out"),
    "experts": ("b_in", "b_out"),
    "shared": ("b_in", "b_out"),
}


def _declare(module: nn.Module, part: str, shapes: dict[str, tuple[int, ...]]) -> None:
    """The parameters of one part of a plan, those that it does not have as None."""
    for name in OPTIONAL[part]:
        module.register_parameter(name, None)
    for name, shape in shapes.items():
        owner, _, own = name.partition(".")
        if owner == part:
            module.register_parameter(own, nn.Parameter(torch.empty(shape)))
