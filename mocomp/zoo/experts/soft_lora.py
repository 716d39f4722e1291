"""Omni-SMoLA (Wu 2023): adapters of low rank, on slots that are soft mixtures of all tokens, as in Soft MoE (Puigcerver 2023).

Dimension letters: B batch, S sequence, E experts, P slots of an expert, H hidden, R rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.experts.lora import RANK


class SoftLoRA(nn.Module):
    """The base on each token, plus what the adapters make of slots; a token gets slots back by its own softmax over them."""

    def __init__(self, hidden: int, experts: int = 4, slots: int = 2):
        super().__init__()
        self.base, self.keys = nn.Linear(hidden, hidden), nn.Parameter(torch.empty(experts, slots, hidden))
        self.a, self.b = nn.Parameter(torch.empty(experts, RANK, hidden)), nn.Parameter(torch.empty(experts, hidden, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        logits = torch.einsum("bsh,eph->bsep", x, self.keys)
        slots = torch.einsum("bsep,bsh->beph", logits.softmax(1), x)
        low = torch.einsum("beph,erh->bepr", slots, self.a)
        out = torch.einsum("bepr,ehr->beph", low, self.b)
        combine = logits.flatten(2).softmax(-1)
        return self.base(x) + combine @ out.flatten(1, 2)
