"""A mixture as one writes it by hand in a notebook: every expert for every token, banks of parameters, a mask."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HandWritten(nn.Module):
    """y [B, S, D] of x [B, S, D]; up comes before gate in one bank, which is stored as it multiplies from the right."""

    def __init__(self, d: int, hidden: int, n_experts: int, k: int) -> None:
        super().__init__()
        self.k = k
        self.w_router = nn.Parameter(torch.randn(d, n_experts) / d**0.5)
        self.up_and_gate = nn.Parameter(torch.randn(n_experts, d, 2 * hidden) / d**0.5)
        self.down = nn.Parameter(torch.randn(n_experts, hidden, d) / hidden**0.5)

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ self.w_router
        kth = scores.topk(self.k, dim=-1).values[..., -1:]
        weights = torch.where(scores >= kth, scores, -torch.inf).softmax(dim=-1)
        y = torch.zeros_like(x)
        for e in range(self.w_router.shape[1]):
            up, gate = (x @ self.up_and_gate[e]).chunk(2, dim=-1)
            y = y + weights[..., e, None] * ((up * torch.nn.functional.silu(gate)) @ self.down[e])
        return y


class HandWrittenResidual(nn.Module):
    """The same by matrices per expert in lists, with a dense branch, two shares of both, and x itself added."""

    def __init__(self, d: int, hidden: int, n_experts: int, k: int) -> None:
        super().__init__()
        self.k, self.n = k, n_experts
        self.score = nn.Linear(d, n_experts)
        self.first = nn.ParameterList(torch.randn(d, hidden) / d**0.5 for _ in range(n_experts))
        self.second = nn.ParameterList(torch.randn(hidden, d) / hidden**0.5 for _ in range(n_experts))
        self.dense = nn.Sequential(nn.Linear(d, hidden), nn.ReLU(), nn.Linear(hidden, d))
        self.mix = nn.Linear(d, 2)

    def forward(self, x: Tensor) -> Tensor:
        p = self.score(x).softmax(-1)
        best = p.topk(self.k, -1)
        weights = torch.zeros_like(p).scatter(-1, best.indices, best.values / best.values.sum(-1, keepdim=True))
        routed = [weights[..., [e]] * (torch.relu(x @ self.first[e]) @ self.second[e]) for e in range(self.n)]
        share = self.mix(x).softmax(-1)
        return x + share[..., :1] * torch.stack(routed).sum(0) + share[..., 1:] * self.dense(x)
