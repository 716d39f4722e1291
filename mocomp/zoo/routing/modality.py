"""Experts that stand in groups, one group for each modality (MoMa, Lin 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from mocomp.zoo.routing.bank import GatedFeedForward, Routed, top_k


class ModalityGroups(Routed):
    """The first half of the experts is for text, the second for images; a token takes the best of its own half."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 1):
        super().__init__(hidden, experts, chosen, GatedFeedForward)
        self.register_buffer("group", torch.arange(experts) * 2 // experts)
        self.group: Tensor

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """x [B, S, H], modality [B, S] -> y [B, S, H]."""
        logits = self.router(x).masked_fill(self.group != modality[..., None], float("-inf"))
        return self.experts(x, top_k(logits, self.chosen))
