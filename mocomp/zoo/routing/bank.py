"""What most mechanisms are made of: a linear router and a few feed-forward experts, all of them run and weighted.

Running all is what a trace without loops over chosen tokens looks like; an expert that is not chosen has weight 0.
Dimension letters: B batch, S sequence, E experts, K chosen, N slots, H hidden, F expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 24


class FeedForward(nn.Sequential):
    """x [.., H] -> gelu(x W1 + b1) W2 + b2 [.., H]."""

    def __init__(self, hidden: int, width: int = WIDTH):
        super().__init__(nn.Linear(hidden, width), nn.GELU(), nn.Linear(width, hidden))


class GatedFeedForward(nn.Module):
    """x [.., H] -> (silu(x Wg) * (x Wu)) Wd [.., H]."""

    def __init__(self, hidden: int, width: int = WIDTH):
        super().__init__()
        self.gate, self.up = nn.Linear(hidden, width, bias=False), nn.Linear(hidden, width, bias=False)
        self.down = nn.Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [.., H] -> [.., H]."""
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Bank(nn.ModuleList):
    """y [.., H] = sum over E of weights[.., e] * expert e (x [.., H])."""

    def __init__(self, hidden: int, experts: int, kind: type[nn.Module] = FeedForward, width: int = WIDTH):
        super().__init__(kind(hidden, width) for _ in range(experts))  # type: ignore[call-arg]

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """x [.., H], weights [.., E] -> [.., H]."""
        return (torch.stack([expert(x) for expert in self], -1) * weights[..., None, :]).sum(-1)


class SlotBank(nn.ModuleList):
    """Expert e on slice e of its input."""

    def __init__(self, hidden: int, experts: int):
        super().__init__(FeedForward(hidden) for _ in range(experts))

    def forward(self, slots: Tensor) -> Tensor:
        """slots [.., E, N, H] -> [.., E, N, H]."""
        return torch.stack([expert(slots[..., e, :, :]) for e, expert in enumerate(self)], -3)


class Routed(nn.Module):
    """A router and a bank, for mechanisms that bring a forward of their own."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2, kind: type[nn.Module] = FeedForward):
        super().__init__()
        self.chosen = chosen
        self.router = nn.Linear(hidden, experts, bias=False)
        self.experts = Bank(hidden, experts, kind)


class Mixture(Routed):
    """Those, and what a subclass makes of the logits alone."""

    def weights(self, logits: Tensor) -> Tensor:
        """logits [B, S, E] -> weights [B, S, E], 0 for experts that are not chosen."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        return self.experts(x, self.weights(self.router(x)))


def placed(ids: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """ids [.., K], values [.., K] -> a tensor as `like` [.., E] with the values in their places, and 0 elsewhere."""
    return torch.zeros_like(like).scatter(-1, ids, values)


def top_k(logits: Tensor, chosen: int) -> Tensor:
    """logits [.., E] -> the K largest of their softmax, and 0 for the others."""
    values, ids = torch.softmax(logits, -1).topk(chosen, -1)
    return placed(ids, values, logits)


def renormalised(logits: Tensor, chosen: int) -> Tensor:
    """logits [.., E] -> the same, divided by their sum."""
    values, ids = torch.softmax(logits, -1).topk(chosen, -1)
    return placed(ids, values / values.sum(-1, keepdim=True), logits)
