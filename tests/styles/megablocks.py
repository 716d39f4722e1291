"""The reference of MegaBlocks' dropless mixture: sorted tokens, a histogram, and the experts in ONE flat matrix."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LearnedRouter(nn.Module):
    """Softmax top-k, divided by the norm of order `normalise` where one is given: x [T, H] -> weights, ids [T, K]."""

    def __init__(self, hidden: int, experts: int, k: int, normalise: float | None) -> None:
        super().__init__()
        self.layer = nn.Linear(hidden, experts, bias=False)
        self.moe_top_k, self.moe_normalize_expert_weights = k, normalise

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = self.layer(x).softmax(dim=-1).topk(self.moe_top_k, dim=-1)
        if self.moe_normalize_expert_weights:
            weights = weights / torch.norm(weights, p=self.moe_normalize_expert_weights, dim=-1, keepdim=True)
        return weights, ids


class FlatMLP(nn.Module):
    """w1 and w2, each [E * F, H]: expert e is rows e * F to (e + 1) * F of both."""

    def __init__(self, hidden: int, width: int, experts: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(experts * width, hidden) * hidden**-0.5)
        self.w2 = nn.Parameter(torch.randn(experts * width, hidden) * width**-0.5)
        self.moe_num_experts, self.ffn_hidden_size = experts, width

    def forward(self, x: Tensor, tokens_per_expert: Tensor) -> Tensor:
        """x [N, H] sorted by expert -> [N, H]."""
        outputs, start = [], 0
        for number, count in enumerate(tokens_per_expert.tolist()):
            rows = slice(number * self.ffn_hidden_size, (number + 1) * self.ffn_hidden_size)
            h = F.gelu(x[start : start + count] @ self.w1[rows].t(), approximate="tanh")
            outputs.append(h @ self.w2[rows])
            start += count
        return torch.cat(outputs)


class DroplessMoE(nn.Module):
    """x [S, B, H] -> [S, B, H]."""

    def __init__(self, hidden: int, width: int, experts: int, k: int, normalise: float | None = None) -> None:
        super().__init__()
        self.router = LearnedRouter(hidden, experts, k, normalise)
        self.experts = FlatMLP(hidden, width, experts)
        self.top_k, self.num_experts = k, experts

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        weights, ids = self.router(rows)
        order = torch.sort(ids.flatten()).indices
        histogram = torch.histc(ids.float(), bins=self.num_experts, min=0, max=self.num_experts - 1).to(torch.int64)
        computed = self.experts(rows[order // self.top_k], histogram)
        y = torch.zeros_like(rows)
        y.index_add_(0, order // self.top_k, computed * weights.flatten()[order].unsqueeze(-1))
        return y.view_as(x)
