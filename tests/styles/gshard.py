"""Dispatch by one-hot einsums with a capacity: Mesh TensorFlow's Switch, GShard, and fairseq's layer."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SMALLEST = 1e-9


def places(mask: Tensor, before: Tensor | int = 0) -> Tensor:
    """Which of its expert's slots each token would take: mask [T, E] of 0 and 1 -> [T, E], counted after `before`."""
    return (mask.cumsum(dim=0) - 1 + before) * mask


def slots(mask: Tensor, place: Tensor, capacity: int) -> Tensor:
    """One-hot over slots of each chosen pair [T, E, C]; a place that is no slot has none."""
    return mask[..., None] * (place[..., None] == torch.arange(capacity, device=mask.device))


class MeshSwitch(nn.Module):
    """Switch Transformer by einsums: top-1, capacity floor(T * factor / E), dropped tokens come out as zero."""

    def __init__(self, hidden: int, width: int, experts: int, capacity_factor: float) -> None:
        super().__init__()
        self.experts, self.capacity_factor = experts, capacity_factor
        self.router_weights = nn.Parameter(torch.randn(hidden, experts) * hidden**-0.5)
        self.w_in = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.w_out = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(0, 1)
        probabilities = torch.softmax(x @ self.router_weights, dim=-1)
        mask = F.one_hot(probabilities.argmax(-1), self.experts).to(x.dtype)
        capacity = int(len(x) * self.capacity_factor / self.experts)
        dispatch = slots(mask, places(mask), capacity)
        combine = dispatch * (probabilities * mask).sum(-1)[:, None, None]
        expert_inputs = torch.einsum("tec,th->ech", dispatch, x)
        h = torch.relu(torch.einsum("ech,ehf->ecf", expert_inputs, self.w_in))
        return torch.einsum("tec,ech->th", combine, torch.einsum("ecf,efh->ech", h, self.w_out)).view_as(inputs)


class GShardLayer(nn.Module):
    """GShard's top-2: gates divided by their sum first, second choices after all first ones, capacity ceil(2 T / E)."""

    def __init__(self, hidden: int, width: int, experts: int) -> None:
        super().__init__()
        self.gating = nn.Linear(hidden, experts, bias=False)
        self.wi = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.wo = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)

    def gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, H] -> combine weights [T, E, C], dispatch mask [T, E, C]."""
        experts = self.wi.shape[0]
        capacity = math.ceil(2 * len(x) / experts)
        raw = torch.softmax(self.gating(x), dim=-1)
        first = F.one_hot(raw.argmax(-1), experts).to(raw.dtype)
        without = raw * (1 - first)
        second = F.one_hot(without.argmax(-1), experts).to(raw.dtype)
        gate_1, gate_2 = (raw * first).sum(-1), (raw * second).sum(-1)
        total = gate_1 + gate_2 + SMALLEST
        place_1 = places(first)
        place_2 = places(second, first.sum(0, keepdim=True))
        combine = slots(first, place_1, capacity) * (gate_1 / total)[:, None, None]
        combine = combine + slots(second, place_2, capacity) * (gate_2 / total)[:, None, None]
        return combine, combine > 0

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        combine, dispatch = self.gates(rows)
        given = torch.einsum("sec,sm->ecm", dispatch.to(x.dtype), rows)
        h = F.relu(torch.einsum("ecm,emh->ech", given, self.wi))
        return torch.einsum("sec,ecm->sm", combine, torch.einsum("ech,ehm->ecm", h, self.wo)).reshape(x.shape)


class FairseqFeedForward(nn.Module):
    """One expert: fc2(gelu(fc1(x))), with biases."""

    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(hidden, width), nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Top2Gate(nn.Module):
    """fairseq's gate: top-2 with capacity 2 * ceil(T / E); gates are divided by the sum of those that were not dropped."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.wg = nn.Linear(hidden, experts, bias=False)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = self.wg(rows)
        tokens, experts = logits.shape
        gates = F.softmax(logits, dim=1)
        capacity = 2 * math.ceil(tokens / experts)
        mask1 = F.one_hot(gates.argmax(dim=1), experts)
        mask2 = F.one_hot(logits.masked_fill(mask1.bool(), float("-inf")).argmax(dim=1), experts)
        place1, place2 = places(mask1), places(mask2, mask1.sum(dim=0, keepdim=True))
        mask1, mask2 = mask1 * (place1 < capacity), mask2 * (place2 < capacity)
        gate1, gate2 = (gates * mask1).sum(1), (gates * mask2).sum(1)
        total = (gate1 + gate2).clamp(min=torch.finfo(gates.dtype).eps)
        combine = slots(mask1, place1, capacity) * (gate1 / total)[:, None, None]
        combine = combine + slots(mask2, place2, capacity) * (gate2 / total)[:, None, None]
        balance = (gates.mean(0) * mask1.to(gates.dtype).mean(0)).mean() * experts * experts
        return balance, combine, combine.bool()


class FairseqMOELayer(nn.Module):
    """x [S, B, H] -> (y [S, B, H], balancing loss): the dispatched tokens reshaped to the experts of each rank, one here."""

    def __init__(self, hidden: int, width: int, experts: int) -> None:
        super().__init__()
        self.gate = Top2Gate(hidden, experts)
        self.experts = nn.ModuleList(FairseqFeedForward(hidden, width) for _ in range(experts))
        self.num_local_experts, self.world_size = experts, 1

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        width = x.shape[2]
        rows = x.reshape(-1, width)
        balance, combine, dispatch = self.gate(rows)
        given = torch.einsum("sec,sm->ecm", dispatch.to(x.dtype), rows)
        given = given.reshape(self.world_size, self.num_local_experts, -1, width)
        chunks = given.chunk(self.num_local_experts, dim=1)
        outputs = [expert(chunk) for chunk, expert in zip(chunks, self.experts, strict=True)]
        computed = torch.cat(outputs, dim=1).reshape(self.world_size * self.num_local_experts, -1, width)
        return torch.einsum("sec,ecm->sm", combine, computed).reshape(x.shape), balance
