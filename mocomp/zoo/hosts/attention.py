"""What the hosts with attention are made of.

Dimension letters: B batch, S queries, P keys, N heads, D head width, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.hosts import Slot

HEADS = 4


class Attention(nn.Module):
    """Multi-head attention (Vaswani 2017), of a sequence to itself or to a memory."""

    def __init__(self, hidden: int):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(hidden, hidden, bias=False) for _ in range(4))

    def forward(
        self, x: Tensor, memory: Tensor | None = None, seen: Tensor | None = None, angles: Tensor | None = None
    ) -> Tensor:
        """x [B, S, H], memory [B, P, H], seen [.., S, P] bool (which keys a query sees), angles [S, D / 2] -> [B, S, H]."""
        memory = x if memory is None else memory
        q, k, v = (
            linear(y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for linear, y in ((self.query, x), (self.key, memory), (self.value, memory))
        )
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        if seen is not None:
            scores = scores.masked_fill(~seen, -1e9)
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then the mechanism, each on a norm of the stream and added to it."""

    def __init__(self, hidden: int, mechanism: nn.Module, norm: type[nn.Module] = nn.LayerNorm):
        super().__init__()
        self.before_attention, self.attention = norm(hidden), Attention(hidden)
        self.before_mixture, self.mixture = norm(hidden), Slot(mechanism)

    def forward(self, x: Tensor, known: dict[str, Tensor], seen: Tensor | None = None, angles: Tensor | None = None) -> Tensor:
        """x [B, S, H] -> [B, S, H]; `known` is what the host has for the mechanism."""
        x = x + self.attention(self.before_attention(x), None, seen, angles)
        return x + self.mixture(self.before_mixture(x), known)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary position embedding (Su 2021) of x [B, N, S, D] by angles [S, D / 2]."""
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotary_angles(x: Tensor) -> Tensor:
    """x [B, S, H] -> the angles [S, D / 2] of its positions."""
    half = x.shape[-1] // HEADS // 2
    frequencies = 10000.0 ** (-torch.arange(half, device=x.device) / half)
    return torch.arange(x.shape[1], device=x.device)[:, None] * frequencies


def causal(x: Tensor) -> Tensor:
    """x [B, S, H] -> seen [S, S]: each position sees itself and those before it."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril()
