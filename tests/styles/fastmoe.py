"""FastMoE's layer: copies of tokens sorted by expert, experts as one linear layer over groups of rows, scores by bmm."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FMoELinear(nn.Module):
    """The linear layers of all experts, weight [E, out, in]: rows sorted by expert, `counts[e]` of them for expert e."""

    def __init__(self, experts: int, wide_in: int, wide_out: int) -> None:
        super().__init__()
        self.num_expert = experts
        self.weight = nn.Parameter(torch.randn(experts, wide_out, wide_in) * wide_in**-0.5)
        self.bias = nn.Parameter(0.1 * torch.randn(experts, wide_out))

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        groups = torch.split(rows, counts.tolist())
        return torch.cat([F.linear(group, self.weight[e], self.bias[e]) for e, group in enumerate(groups)])


class FMoEExperts(nn.Module):
    """Two such layers with an activation between them."""

    def __init__(self, experts: int, hidden: int, width: int) -> None:
        super().__init__()
        self.htoh4 = FMoELinear(experts, hidden, width)
        self.h4toh = FMoELinear(experts, width, hidden)
        self.activation = nn.GELU()

    def forward(self, rows: Tensor, counts: Tensor) -> Tensor:
        return self.h4toh(self.activation(self.htoh4(rows, counts)), counts)


class NaiveGate(nn.Module):
    """The K best logits and the softmax over them: x [T, H] -> ids [T, K], scores [T, K]."""

    def __init__(self, hidden: int, experts: int, k: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, experts)
        self.top_k = k

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        values, ids = self.gate(x).topk(self.top_k, dim=-1, largest=True, sorted=False)
        return ids, F.softmax(values.view(-1, self.top_k), dim=-1)


class FMoE(nn.Module):
    """x [B, S, H] -> [B, S, H]."""

    def __init__(self, hidden: int, width: int, experts: int, k: int) -> None:
        super().__init__()
        self.num_expert, self.top_k = experts, k
        self.gate = NaiveGate(hidden, experts, k)
        self.experts = FMoEExperts(experts, hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        ids, scores = self.gate(rows)
        flat = ids.reshape(-1)
        position = torch.sort(flat, stable=True).indices
        counts = torch.bincount(flat, minlength=self.num_expert)
        sent = rows.index_select(0, torch.div(position, self.top_k, rounding_mode="floor"))
        received = torch.zeros(len(flat), rows.shape[1], dtype=rows.dtype).index_copy(0, position, self.experts(sent, counts))
        return torch.bmm(scores.view(-1, 1, self.top_k), received.view(-1, self.top_k, rows.shape[1])).view_as(x)
