"""Tutel's layer: tokens are written to the slots of experts by index and location, and experts are batched products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusedExperts(nn.Module):
    """All experts at once, x [E, C, M] -> [E, C, M]; the first weight [E, F, M], the second [E, F, M] as well."""

    def __init__(self, model_dim: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.batched_fc1_w = nn.Parameter(torch.randn(experts, hidden, model_dim) * model_dim**-0.5)
        self.batched_fc2_w = nn.Parameter(torch.randn(experts, hidden, model_dim) * hidden**-0.5)
        self.batched_fc1_bias = nn.Parameter(0.1 * torch.randn(experts, hidden))
        self.batched_fc2_bias = nn.Parameter(0.1 * torch.randn(experts, model_dim))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.baddbmm(self.batched_fc1_bias.unsqueeze(1), x, self.batched_fc1_w.transpose(1, 2))
        return torch.baddbmm(self.batched_fc2_bias.unsqueeze(1), F.relu(h), self.batched_fc2_w)


class TutelLayer(nn.Module):
    """x [B, S, M] -> [B, S, M]: capacity K * int(factor * ceil(T / E)), all first choices before all second ones."""

    def __init__(
        self, model_dim: int, hidden: int, experts: int, k: int, capacity_factor: float, normalize_gate: bool = True
    ) -> None:
        super().__init__()
        self.top_k, self.capacity_factor, self.normalize_gate = k, capacity_factor, normalize_gate
        self.wg = nn.Linear(model_dim, experts, bias=False)
        self.experts = FusedExperts(model_dim, hidden, experts)

    def critical_data(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """scores [T, E] -> gates, ids and locations, each [K, T], and the capacity."""
        tokens, experts = scores.shape
        ids = torch.topk(scores, self.top_k, dim=1).indices.T
        gates = scores.gather(1, ids.T).T
        if self.normalize_gate and self.top_k > 1:
            gates = gates / gates.sum(0).clamp(min=torch.finfo(gates.dtype).eps)
        masks = F.one_hot(ids, experts)  # [K, T, E]
        before = masks.sum(1).cumsum(0) - masks.sum(1)
        locations = ((masks.cumsum(1) - 1 + before[:, None]) * masks).sum(2)
        capacity = self.top_k * int(self.capacity_factor * ((tokens + experts - 1) // experts))
        return gates, ids, locations, capacity

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        scores = F.softmax(self.wg(rows), dim=1)
        gates, ids, locations, capacity = self.critical_data(scores)
        fits = locations < capacity
        slot = ids * capacity + locations
        buffer = rows.new_zeros(scores.shape[1] * capacity, rows.shape[1])
        for k in range(self.top_k):
            buffer[slot[k][fits[k]]] = rows[fits[k]]
        computed = self.experts(buffer.view(scores.shape[1], capacity, -1)).flatten(0, 1)
        y = torch.zeros_like(rows)
        for k in range(self.top_k):
            y[fits[k]] += gates[k][fits[k]].unsqueeze(1) * computed[slot[k][fits[k]]]
        return y.view_as(x)
