"""V-MoE with batch-prioritised routing in torch ops (Riquelme 2021), and LIMoE (Mustafa 2022): one router, two modalities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class VMoEBlock(nn.Module):
    """x [B, P, H] -> [B, P, H]: tokens of the whole batch are served in the order of their largest gate.

    The buffer of an expert is round(K * B * P * ratio / E); what does not fit is zero, and gates stay as they are.
    """

    def __init__(self, hidden: int, width: int, experts: int, k: int, capacity_ratio: float) -> None:
        super().__init__()
        self.num_selected, self.capacity_ratio, self.num_experts = k, capacity_ratio, experts
        self.router = nn.Linear(hidden, experts, bias=False)
        self.mlp_in = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.mlp_in_bias = nn.Parameter(0.1 * torch.randn(experts, 1, width))
        self.mlp_out = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.mlp_out_bias = nn.Parameter(0.1 * torch.randn(experts, 1, hidden))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, 1)
        gates, ids = self.router(rows).softmax(-1).topk(self.num_selected, dim=-1)
        buffer = round(self.num_selected * len(rows) * self.capacity_ratio / self.num_experts)
        served = gates[:, 0].argsort(descending=True)
        wanted = F.one_hot(ids[served], self.num_experts)  # [T, K, E], the most important token first
        by_choice = wanted.transpose(0, 1).flatten(0, 1)
        place = (by_choice.cumsum(0) - 1).unflatten(0, (self.num_selected, -1)).transpose(0, 1)
        fits = (wanted * (place < buffer)).sum(-1).bool()
        place = (place * wanted).sum(-1)
        pairs = torch.nonzero(fits)
        token, expert, slot = served[pairs[:, 0]], ids[served][fits], place[fits]
        given = rows.new_zeros(self.num_experts, buffer, rows.shape[1])
        given[expert, slot] = rows[token]
        h = F.gelu(given @ self.mlp_in + self.mlp_in_bias)
        computed = h @ self.mlp_out + self.mlp_out_bias
        y = torch.zeros_like(rows)
        y.index_add_(0, token, gates[served][fits].unsqueeze(-1) * computed[expert, slot])
        return y.view_as(x)


class LIMoE(nn.Module):
    """A layer of the one-tower encoder: patches [B, P, H], words [B, L, H] -> the same two, through one V-MoE block."""

    def __init__(self, hidden: int, block: nn.Module) -> None:
        super().__init__()
        self.norm, self.moe = nn.LayerNorm(hidden), block
        self.image_embedding = nn.Parameter(0.1 * torch.randn(hidden))
        self.text_embedding = nn.Parameter(0.1 * torch.randn(hidden))

    def forward(self, patches: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([patches + self.image_embedding, words + self.text_embedding], dim=1)
        x = x + self.moe(self.norm(x))
        return x[:, : patches.shape[1]], x[:, patches.shape[1] :]
