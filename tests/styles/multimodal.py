"""Mixtures of language models that see: MoE-LLaVA's decoder layer, Uni-MoE's block, CuMo's connector."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.styles.transformers4 import GatedMLP


class MoELLaVALayer(nn.Module):
    """A causal decoder layer whose MLP is a DeepSpeed mixture: x [B, S, H] -> (x [B, S, H], loss, counts)."""

    def __init__(self, hidden: int, heads: int, mixture: nn.Module) -> None:
        super().__init__()
        self.heads = heads
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(hidden, 1e-5), nn.RMSNorm(hidden, 1e-5)
        self.qkv_proj = nn.Linear(hidden, 3 * hidden, bias=False)
        self.o_proj = nn.Linear(hidden, hidden, bias=False)
        self.mlp = mixture

    def attention(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        q, k, v = self.qkv_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o_proj(y.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = x + self.attention(self.input_layernorm(x))
        y, loss, counts = self.mlp(self.post_attention_layernorm(x))
        return x + y, loss, counts


class UniMoEBlock(nn.Module):
    """Uni-MoE: the logits of all but two experts are masked before the softmax; experts are LLaMA's MLPs."""

    def __init__(self, hidden: int, width: int, experts: int, k: int = 2) -> None:
        super().__init__()
        self.router = nn.Linear(hidden, experts)
        self.experts = nn.ModuleList(GatedMLP(hidden, width) for _ in range(experts))
        self.k = k

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        values, ids = logits.topk(self.k, dim=-1)
        weights = torch.full_like(logits, float("-inf")).scatter(-1, ids, values).softmax(-1)
        y = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            taken = (ids == number).any(-1)
            if taken.any():
                y[taken] = y[taken] + weights[taken][:, number : number + 1] * expert(x[taken])
        return y


class CuMoConnector(nn.Module):
    """CuMo's connector from the vision encoder to the language model: x [B, P, H] -> ([B, P, H'], logits), two of E MLPs."""

    def __init__(self, wide_in: int, wide_out: int, experts: int, k: int = 2) -> None:
        super().__init__()
        self.gate = nn.Linear(wide_in, experts, bias=False)
        self.num_selected, self.channels = k, wide_out
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(wide_in, wide_out), nn.GELU(), nn.Linear(wide_out, wide_out)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.gate(x)
        weights, chosen = torch.topk(F.softmax(logits, dim=-1), self.num_selected, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        results = x.new_zeros(*x.shape[:2], self.channels)
        for number, expert in enumerate(self.experts):
            image, patch, slot = torch.where(chosen == number)
            results[image, patch] += weights[image, patch, slot, None] * expert(x[image, patch])
        return results, logits
