"""Experts that are adapters of low rank beside a frozen matrix: W0 x + sum of w_i B_i A_i x.

Dimension letters: B batch, S sequence, E experts, H hidden, R rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.zoo.experts.parts import top_shares

RANK = 4


class Adapted(nn.Module):
    """A frozen matrix with adapters a [E, R, H], b [E, H, R]; shares [.., E] say how much of each."""

    def __init__(self, hidden: int, experts: int, rank: int = RANK):
        super().__init__()
        self.base = nn.Linear(hidden, hidden)
        self.a, self.b = nn.Parameter(torch.empty(experts, rank, hidden)), nn.Parameter(torch.empty(experts, hidden, rank))

    def forward(self, x: Tensor, shares: Tensor) -> Tensor:
        """x [B, S, H], shares [B, S or 1, E] -> [B, S, H]."""
        low = torch.einsum("bsh,erh->bser", x, self.a)
        return self.base(x) + torch.einsum("bser,ehr->bsh", low * shares[..., None], self.b)


class Routed(nn.Module):
    """One adapted matrix whose router reads what it is applied to; `shares_of` makes shares of logits."""

    def __init__(self, hidden: int, experts: int, shares_of: Callable[[Tensor], Tensor]):
        super().__init__()
        self.router, self.linear = nn.Linear(hidden, experts, bias=False), Adapted(hidden, experts)
        self.shares_of = shares_of

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        return self.linear(x, self.shares_of(self.router(x)))


class MoLoRA(nn.Module):
    """MoLoRA (Zadouri 2023): a softmax over all adapters, in both matrices of a feed-forward."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.up, self.down = (Routed(hidden, experts, self.shares) for _ in range(2))

    @staticmethod
    def shares(logits: Tensor) -> Tensor:
        """logits [.., E] -> shares [.., E]."""
        return logits.softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        return self.down(F.gelu(self.up(x)))


class MoLA(MoLoRA):
    """MoLA (Gao 2024): the two best adapters, and more adapters in the higher layers than in the lower ones."""

    @staticmethod
    def shares(logits: Tensor) -> Tensor:
        """logits [.., E] -> shares [.., E], two of them not 0."""
        return top_shares(logits, 2)


class Octavius(nn.Module):
    """Octavius (Chen 2023): one choice of two adapters for a whole instance, by its instruction: here the mean embedding."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.router = nn.Linear(hidden, experts, bias=False)
        self.up, self.down = Adapted(hidden, experts), Adapted(hidden, experts)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x, embedding [B, S, H] -> [B, S, H]."""
        shares = top_shares(self.router(embedding.mean(1, keepdim=True)), 2)
        return self.down(F.gelu(self.up(x, shares)), shares)


class RankOne(nn.Module):
    """MoR1E (Liu 2024): many adapters of rank one, weighed by a softmax that reads the embedding of the instruction."""

    def __init__(self, hidden: int, experts: int = 8):
        super().__init__()
        self.router, self.linear = nn.Linear(hidden, experts, bias=False), Adapted(hidden, experts, rank=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x, embedding [B, S, H] -> [B, S, H]."""
        return self.linear(x, self.router(embedding.mean(1, keepdim=True)).softmax(-1))
