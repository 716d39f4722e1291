"""Mixture-of-depths (Raposo 2024): not every token passes through every block.

Dimension letters: B batch, S sequence, C tokens that pass, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.experts.attention_heads import attend
from mocomp.zoo.experts.parts import FeedForward
from mocomp.zoo.hosts.attention import causal


class Passed(nn.Module):
    """A block of one head of attention and a feed-forward; `seen` says which of its tokens see which."""

    def __init__(self, hidden: int):
        super().__init__()
        self.project, self.out = nn.Linear(hidden, 3 * hidden, bias=False), nn.Linear(hidden, hidden, bias=False)
        self.norm, self.feed_forward = nn.RMSNorm(hidden), FeedForward(hidden, hidden)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x [B, C, H], seen [B, C, C] -> what the block adds to x."""
        q, k, v = self.project(x)[:, None].chunk(3, -1)
        attended = self.out(attend(q, k, v, seen[:, None])[:, 0])
        return attended + self.feed_forward(self.norm(x + attended))


class TopOfSequence(nn.Module):
    """The half of a sequence with the largest scores passes, sees itself alone, and is scaled by its scores.

    Which half depends on tokens that come later: this is the form of training, and of models that encode.
    """

    def __init__(self, hidden: int):
        super().__init__()
        self.router, self.block = nn.Linear(hidden, 1, bias=False), Passed(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> what is added to x, 0 for tokens that do not pass."""
        scores, ids = self.router(x)[..., 0].topk((x.shape[1] + 1) // 2, -1)
        places = ids[..., None].expand(-1, -1, x.shape[-1])
        y = self.block(x.gather(1, places), ids[:, :, None] >= ids[:, None, :])
        return torch.zeros_like(x).scatter(1, places, y * torch.sigmoid(scores)[..., None])


class Foretold(nn.Module):
    """The causal form: a second router has learned to foretell, from the token alone, who would be in the upper half."""

    def __init__(self, hidden: int):
        super().__init__()
        self.router, self.foretells, self.block = nn.Linear(hidden, 1, bias=False), nn.Linear(hidden, 1), Passed(hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> what is added to x, 0 for tokens that do not pass."""
        passes = torch.sigmoid(self.foretells(x)) > 0.5  # [B, S, 1]
        y = self.block(x, causal(x) & passes.transpose(1, 2))
        return torch.where(passes, y * torch.sigmoid(self.router(x)), 0.0)
