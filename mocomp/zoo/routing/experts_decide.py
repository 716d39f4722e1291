"""Routing without a router: what the experts make of a token, or what they stand for, decides.

Dimension letters: B batch, S sequence, E experts, H hidden, F expert width, R rank.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.zoo.routing.bank import WIDTH, Bank, placed


class Codebook(nn.Module):
    """Each expert has a code vector; a token goes to the expert of the nearest one (VQMoE, Do 2024, its discrete path)."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.codes, self.experts = nn.Parameter(torch.empty(experts, hidden)), Bank(hidden, experts)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        nearest = (x[..., None, :] - self.codes).square().sum(-1).argmin(-1)
        return self.experts(x, F.one_hot(nearest, len(self.experts)).to(x.dtype))


class SelfSelected(nn.Module):
    """Every expert computes the low-rank start of its gate; those where it is longest go on (Autonomy-of-Experts, Lv 2025).

    Weights are softmax over the K largest norms.
    """

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2, rank: int = 6):
        super().__init__()
        self.chosen = chosen
        shapes = ((rank, hidden), (WIDTH, rank), (WIDTH, hidden), (hidden, WIDTH))
        self.down, self.gate, self.up, self.out = (nn.Parameter(torch.empty(experts, *shape)) for shape in shapes)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        start = torch.einsum("bsh,erh->bser", x, self.down)
        norms = start.norm(dim=-1)
        values, ids = norms.topk(self.chosen, -1)
        inner = F.silu(torch.einsum("bser,efr->bsef", start, self.gate)) * torch.einsum("bsh,efh->bsef", x, self.up)
        out = torch.einsum("bsef,ehf->bseh", inner, self.out)
        return (out * placed(ids, torch.softmax(values, -1), norms)[..., None]).sum(-2)


class Competition(nn.Module):
    """All experts are run; those with the largest answers win, and share by softmax of the norms (CompeteSMoE, Pham 2024)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__()
        self.chosen, self.experts = chosen, Bank(hidden, experts)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        answers = torch.stack([expert(x) for expert in self.experts], -2)
        norms = answers.norm(dim=-1)
        values, ids = norms.topk(self.chosen, -1)
        return (answers * placed(ids, torch.softmax(values, -1), norms)[..., None]).sum(-2)
