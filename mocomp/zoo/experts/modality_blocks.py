"""Parts of a block for each modality, with no router: the modality of a token is its expert.

Dimension letters: B batch, S sequence, N heads, D head width, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from mocomp.zoo.experts.attention_heads import attend
from mocomp.zoo.experts.parts import FeedForward
from mocomp.zoo.hosts.attention import HEADS, causal


class PerModality(nn.Module):
    """A module for each of two modalities, 0 and 1; each token is given the result of its own."""

    def __init__(self, make: Callable[[], nn.Module]):
        super().__init__()
        self.text, self.image = make(), make()

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """x [B, S, H], modality [B, S] -> [B, S, ..]."""
        return torch.where(modality[..., None] == 1, self.image(x), self.text(x))


class MixtureOfTransformers(nn.Module):
    """Mixture-of-Transformers (Liang 2024): norms, projections and feed-forward per modality; attention sees all tokens."""

    def __init__(self, hidden: int):
        super().__init__()
        self.before, self.between = (PerModality(lambda: nn.RMSNorm(hidden)) for _ in range(2))
        self.project = PerModality(lambda: nn.Linear(hidden, 3 * hidden, bias=False))
        self.out = PerModality(lambda: nn.Linear(hidden, hidden, bias=False))
        self.feed_forward = PerModality(lambda: FeedForward(hidden, hidden))

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """x [B, S, H], modality [B, S] -> what the block adds to x."""
        q, k, v = (
            self.project(self.before(x, modality), modality).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        attended = self.out(attend(q, k, v, causal(x)).transpose(1, 2).flatten(2), modality)
        return attended + self.feed_forward(self.between(x + attended, modality), modality)


class Multiway(nn.Module):
    """BEiT-3's multiway block (Wang 2022), the part after its shared attention: a feed-forward per modality."""

    def __init__(self, hidden: int):
        super().__init__()
        self.feed_forward = PerModality(lambda: FeedForward(hidden, hidden))

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """x [B, S, H], modality [B, S] -> [B, S, H]."""
        return self.feed_forward(x, modality)
