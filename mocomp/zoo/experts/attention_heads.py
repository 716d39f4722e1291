"""Experts that are heads of attention.

Dimension letters: B batch, S and P positions, N heads, E experts, D head width, H hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.experts.parts import top_shares
from mocomp.zoo.hosts.attention import causal

WIDTH = 8


def attend(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None) -> Tensor:
    """q [B, N, S, D], k and v [B, 1 or N, P, D], seen [S, P] -> [B, N, S, D]."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    return torch.softmax(scores if seen is None else scores.masked_fill(~seen, -1e9), -1) @ v


class MoA(nn.Module):
    """MoA (Zhang 2022) as JetMoE (Shen 2024) has it in a decoder: keys and values are shared, and each expert has a query and
    an output of its own; tokens choose two."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__()
        self.router, self.chosen = nn.Linear(hidden, experts, bias=False), chosen
        self.key, self.value = nn.Linear(hidden, WIDTH, bias=False), nn.Linear(hidden, WIDTH, bias=False)
        self.queries = nn.Parameter(torch.empty(experts, WIDTH, hidden))
        self.outputs = nn.Parameter(torch.empty(experts, hidden, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        q = torch.einsum("bsh,edh->besd", x, self.queries)
        y = attend(q, self.key(x)[:, None], self.value(x)[:, None], causal(x))
        shares = top_shares(self.router(x), self.chosen)
        return torch.einsum("besd,bse,ehd->bsh", y, shares, self.outputs)


class MoH(nn.Module):
    """MoH (Jin 2024): the heads of usual attention, some always there and some by choice, weighed by scores of their own kind
    that a softmax over two numbers of the token balances."""

    def __init__(self, hidden: int, shared: int = 2, routed: int = 6, chosen: int = 3):
        super().__init__()
        self.heads, self.chosen = shared + routed, chosen
        self.project = nn.Linear(hidden, 3 * self.heads * WIDTH, bias=False)
        self.shared, self.routed = nn.Linear(hidden, shared, bias=False), nn.Linear(hidden, routed, bias=False)
        self.balance, self.out = nn.Linear(hidden, 2, bias=False), nn.Linear(self.heads * WIDTH, hidden, bias=False)

    def shares(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> shares [B, S, N]: shared heads first, all but `chosen` of the routed ones 0."""
        probabilities = self.routed(x).softmax(-1)
        top, ids = probabilities.topk(self.chosen, -1)
        routed = torch.zeros_like(probabilities).scatter(-1, ids, top)
        first, second = self.balance(x).softmax(-1).split(1, -1)
        return torch.cat([first * self.shared(x).softmax(-1), second * routed], -1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        q, k, v = self.project(x).unflatten(-1, (3, self.heads, WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        y = attend(q, k, v).transpose(1, 2) * self.shares(x)[..., None]
        return self.out(y.flatten(2))


class SwitchHead(nn.Module):
    """SwitchHead (Csordas 2023): few heads, whose values and outputs are banks; a sigmoid chooses of each bank, for each head,
    by the token that is read and by the one that is written."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2, heads: int = 2):
        super().__init__()
        self.heads, self.experts, self.chosen = heads, experts, chosen
        self.query, self.key = (nn.Linear(hidden, heads * WIDTH, bias=False) for _ in range(2))
        self.of_values, self.of_outputs = (nn.Linear(hidden, heads * experts, bias=False) for _ in range(2))
        self.values = nn.Parameter(torch.empty(heads, experts, WIDTH, hidden))
        self.outputs = nn.Parameter(torch.empty(heads, experts, hidden, WIDTH))

    def shares(self, logits: Tensor) -> Tensor:
        """logits [B, S, N * E] -> shares [B, S, N, E], sigmoids of the largest."""
        scores = torch.sigmoid(logits.unflatten(-1, (self.heads, self.experts)))
        top, ids = scores.topk(self.chosen, -1)
        return torch.zeros_like(scores).scatter(-1, ids, top)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        q, k = (linear(x).unflatten(-1, (self.heads, WIDTH)).transpose(1, 2) for linear in (self.query, self.key))
        v = torch.einsum("bsh,nedh,bsne->bnsd", x, self.values, self.shares(self.of_values(x)))
        y = attend(q, k, v, causal(x))
        return torch.einsum("bnsd,nehd,bsne->bsh", y, self.outputs, self.shares(self.of_outputs(x)))
