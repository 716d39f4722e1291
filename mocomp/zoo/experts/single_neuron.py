"""PEER (He 2024): a great many experts of a single neuron, found by product keys.

Dimension letters: B batch, S sequence, N heads, K chosen, H hidden, D width of half a query, Q half keys (and Q * Q experts).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PEER(nn.Module):
    """Each head asks for K experts; an expert is v gelu(u x), and its weight a softmax over what the head asked for."""

    def __init__(self, hidden: int, half_keys: int = 8, chosen: int = 3, heads: int = 2, width: int = 8):
        super().__init__()
        self.heads, self.chosen = heads, chosen
        self.query = nn.Linear(hidden, heads * 2 * width, bias=False)
        self.keys = nn.Parameter(torch.empty(2, half_keys, width))
        self.u, self.v = nn.Embedding(half_keys**2, hidden), nn.Embedding(half_keys**2, hidden)

    def experts_for(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, H] -> ids, weights [B, S, N, K]."""
        query = self.query(x).unflatten(-1, (self.heads, 2, -1))
        first, second = torch.einsum("bsntd,tqd->tbsnq", query, self.keys).unbind(0)
        (top_a, a), (top_b, b) = first.topk(self.chosen, -1), second.topk(self.chosen, -1)
        sums = (top_a[..., :, None] + top_b[..., None, :]).flatten(-2)
        pairs = (a[..., :, None] * self.keys.shape[1] + b[..., None, :]).flatten(-2)
        top, places = sums.topk(self.chosen, -1)
        return pairs.gather(-1, places), top.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        ids, weights = self.experts_for(x)
        h = weights * F.gelu(torch.einsum("bsh,bsnkh->bsnk", x, self.u(ids)))
        return torch.einsum("bsnk,bsnkh->bsh", h, self.v(ids))
