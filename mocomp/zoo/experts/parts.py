"""What the mechanisms of this folder are made of: a feed-forward expert, and the usual choice of experts.

Dimension letters: B batch, S sequence, E experts, H hidden, F expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FeedForward(nn.Module):
    """down(gelu(up(x))), of any width."""

    def __init__(self, hidden: int, width: int):
        super().__init__()
        self.up, self.down = nn.Linear(hidden, width), nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., H] -> [.., H]."""
        return self.down(F.gelu(self.up(x)))


def top_shares(logits: Tensor, chosen: int) -> Tensor:
    """logits [.., E] -> shares [.., E]: softmax over the `chosen` largest, 0 elsewhere."""
    top, ids = logits.topk(chosen, -1)
    return torch.zeros_like(logits).scatter(-1, ids, top.softmax(-1))


def weighted(x: Tensor, shares: Tensor, experts: nn.ModuleList) -> Tensor:
    """x [.., H], shares [.., E] -> the sum of what the experts make of x, times their shares."""
    return sum((shares[..., e, None] * expert(x) for e, expert in enumerate(experts)), torch.zeros_like(x))
