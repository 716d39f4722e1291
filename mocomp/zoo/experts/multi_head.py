"""MH-MoE (Wu 2024): a token is split into heads, and each sub-token chooses experts of its own."""

from __future__ import annotations

from torch import Tensor, nn

from mocomp.zoo.experts.parts import FeedForward, top_shares, weighted


class SubTokens(nn.Module):
    """A mixture over sub-tokens: what it routes is narrower than the stream."""

    def __init__(self, hidden: int, experts: int, chosen: int):
        super().__init__()
        self.router, self.chosen = nn.Linear(hidden, experts, bias=False), chosen
        self.experts = nn.ModuleList(FeedForward(hidden, 2 * hidden) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S * heads, H / heads] -> the same shape."""
        return weighted(x, top_shares(self.router(x), self.chosen), self.experts)


class MultiHead(nn.Module):
    """Project, split, mix, join, project."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2, heads: int = 4):
        super().__init__()
        self.heads, self.split, self.merge = heads, nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.mixture = SubTokens(hidden // heads, experts, chosen)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        batch, sequence, hidden = x.shape
        parts = self.split(x).reshape(batch, sequence * self.heads, hidden // self.heads)
        return self.merge(self.mixture(parts).reshape(batch, sequence, hidden))
