"""A large memory of values that is searched by two small sets of keys (Lample 2019; UltraMem, Huang 2024).

Dimension letters: B batch, S sequence, H hidden, K chosen, N keys of a half, D width of a half of the query.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ProductKeys(nn.Module):
    """Each half of a query finds its K best keys; of the K * K sums the K best choose values, weighted by softmax."""

    def __init__(self, hidden: int, experts: int = 64, chosen: int = 3, width: int = 8):
        super().__init__()
        self.chosen, keys = chosen, round(experts**0.5)
        self.query = nn.Linear(hidden, 2 * width, bias=False)
        self.keys = nn.Parameter(torch.empty(2, keys, width))
        self.values = nn.Embedding(experts, hidden)

    def choose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, H] -> ids [B, S, K] of values, weights [B, S, K]."""
        halves = self.query(x).unflatten(-1, (2, -1))  # [B, S, 2, D]
        scores, ids = torch.einsum("bstd,tnd->bstn", halves, self.keys).topk(self.chosen, -1)
        sums = (scores[:, :, 0, :, None] + scores[:, :, 1, None, :]).flatten(-2)
        pairs = (ids[:, :, 0, :, None] * self.keys.shape[1] + ids[:, :, 1, None, :]).flatten(-2)
        best, places = sums.topk(self.chosen, -1)
        return pairs.gather(-1, places), torch.softmax(best, -1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        ids, weights = self.choose(x)
        return (F.embedding(ids, self.values.weight) * weights[..., None]).sum(-2)
