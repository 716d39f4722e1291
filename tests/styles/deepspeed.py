"""DeepSpeed's layer: a gate, a stage of experts in chunks, and a module around both that may add a dense branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TopKGate(nn.Module):
    """Top-1 or top-2 with capacity max(min_capacity, ceil(T / E * factor)), or as large as needed without `drop_tokens`.

    `second_by_noise` draws the second expert with Gumbel noise, in evaluation too, as DeepSpeed does unless told otherwise.
    """

    def __init__(
        self,
        hidden: int,
        experts: int,
        k: int,
        eval_capacity_factor: float = 1.0,
        min_capacity: int = 4,
        drop_tokens: bool = True,
        second_by_noise: bool = False,
    ) -> None:
        super().__init__()
        self.wg = nn.Linear(hidden, experts, bias=False)
        self.k, self.capacity_factor, self.eval_capacity_factor = k, 1.0, eval_capacity_factor
        self.min_capacity, self.drop_tokens, self.top2_2nd_expert_sampling = min_capacity, drop_tokens, second_by_noise

    def capacity(self, gates: Tensor, counts: Tensor) -> Tensor:
        """gates [T, E], tokens per expert [E] -> slots per expert, a tensor of one number."""
        if not self.drop_tokens:
            return counts.max()
        factor = self.capacity_factor if self.training else self.eval_capacity_factor
        wanted = torch.ceil(torch.tensor(gates.shape[0] / gates.shape[1] * factor * self.k)).to(torch.int64)
        return torch.maximum(wanted, torch.tensor(self.min_capacity))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [T, H] -> loss, combine weights [T, E, C], dispatch mask [T, E, C], tokens per expert [E]."""
        logits = F.linear(x.float(), self.wg.weight.float())
        gates = F.softmax(logits, dim=1)
        experts = gates.shape[1]
        masks = [F.one_hot(gates.argmax(dim=1), experts)]
        if self.k == 2:
            noise = -torch.log(-torch.log(torch.rand_like(logits))) if self.top2_2nd_expert_sampling else 0.0
            masks.append(F.one_hot((logits + noise).masked_fill(masks[0].bool(), float("-inf")).argmax(dim=1), experts))
        counts = torch.stack(masks).sum((0, 1))
        capacity = self.capacity(gates, counts)
        taken, kept, where = torch.zeros_like(counts), [], []
        for mask in masks:
            location = mask.cumsum(dim=0) - 1 + taken
            taken = taken + mask.sum(dim=0)
            kept.append(mask * (location < capacity))
            where.append((location * kept[-1]).sum(dim=1))
        chosen = [torch.einsum("se,se->s", gates, mask.float()) for mask in kept]
        if self.k == 2:
            total = (chosen[0] + chosen[1]).clamp(min=torch.finfo(gates.dtype).eps)
            chosen = [gate / total for gate in chosen]
        parts = [
            torch.einsum("se,sc->sec", gate[:, None] * mask.float(), F.one_hot(location, int(capacity)).float())
            for gate, mask, location in zip(chosen, kept, where, strict=True)
        ]
        combine = torch.stack(parts).sum(0)
        balance = (gates.mean(0) * masks[0].float().mean(0)).sum() * experts
        return balance, combine, combine.bool(), counts


class Experts(nn.Module):
    """Expert e on chunk e of [1, E, C, H]."""

    def __init__(self, experts: list[nn.Module]) -> None:
        super().__init__()
        self.deepspeed_experts = nn.ModuleList(experts)
        self.num_local_experts = len(experts)

    def forward(self, inputs: Tensor) -> Tensor:
        chunks = inputs.chunk(self.num_local_experts, dim=1)
        return torch.cat([expert(chunk) for chunk, expert in zip(chunks, self.deepspeed_experts, strict=True)], dim=1)


class MOELayer(nn.Module):
    """Gate, dispatch, experts, combine: x [B, S, H] -> [B, S, H]; the loss and the counts are left on the module."""

    def __init__(self, gate: nn.Module, experts: Experts) -> None:
        super().__init__()
        self.gate, self.experts = gate, experts

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        self.l_aux, combine, dispatch, self.exp_counts = self.gate(rows)
        given = torch.einsum("sec,sm->ecm", dispatch.type_as(x), rows)
        given = given.reshape(1, self.experts.num_local_experts, -1, x.shape[-1])
        computed = self.experts(given).reshape(self.experts.num_local_experts, -1, x.shape[-1])
        return torch.einsum("sec,ecm->sm", combine.type_as(x), computed).reshape(x.shape)


class MoE(nn.Module):
    """The module that users see: (output, loss, counts); `residual` is a dense branch, both weighed by a coefficient."""

    def __init__(self, hidden: int, experts: list[nn.Module], gate: nn.Module, residual: nn.Module | None = None) -> None:
        super().__init__()
        self.deepspeed_moe = MOELayer(gate, Experts(experts))
        self.use_residual = residual is not None
        if residual is not None:
            self.mlp = residual
            self.coefficient = nn.Linear(hidden, 2)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        output = self.deepspeed_moe(hidden_states)
        if self.use_residual:
            share = F.softmax(self.coefficient(hidden_states), dim=-1)
            output = output * share[..., 0:1] + self.mlp(hidden_states) * share[..., 1:]
        return output, self.deepspeed_moe.l_aux, self.deepspeed_moe.exp_counts
