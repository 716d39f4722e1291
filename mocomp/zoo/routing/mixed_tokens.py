"""Experts that are given mixtures of tokens, so that nothing is chosen at all."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.routing.bank import SlotBank


class SoftSlots(nn.Module):
    """Slots are means of a sequence's tokens, tokens are means of what the experts make of slots (Soft MoE, Puigcerver 2023).

    From x Phi [B, S, E * N]: softmax over tokens makes the slots, softmax over slots gives them back.
    """

    def __init__(self, hidden: int, experts: int = 4, slots: int = 2):
        super().__init__()
        self.phi = nn.Parameter(torch.empty(experts * slots, hidden))
        self.experts, self.slots = SlotBank(hidden, experts), slots

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        logits = x @ self.phi.T
        slots = torch.softmax(logits, 1).transpose(1, 2) @ x
        out = self.experts(slots.unflatten(1, (-1, self.slots))).flatten(1, 2)
        return torch.softmax(logits, 2) @ out


class MixtureOfTokens(nn.Module):
    """The tokens at one position of all sequences are a group: each expert is given one mean of it, and gives it back by the
    same weights, softmax over the group (Mixture of Tokens, Antoniak 2023)."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.controller, self.experts = nn.Linear(hidden, experts, bias=False), SlotBank(hidden, experts)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        weights = torch.softmax(self.controller(x), 0)  # [B, S, E]
        mixed = torch.einsum("bse,bsh->esh", weights, x)
        return torch.einsum("bse,esh->bsh", weights, self.experts(mixed))
