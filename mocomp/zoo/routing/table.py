"""Experts that are fixed by a token's id."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.zoo.hosts import VOCABULARY
from mocomp.zoo.routing.bank import Bank, Routed, placed, top_k


class Hash(nn.Module):
    """A random table tells the expert of each id (hash layers, Roller 2021)."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.experts = Bank(hidden, experts)
        self.register_buffer("table", torch.randint(experts, (VOCABULARY,)))
        self.table: Tensor

    def forward(self, x: Tensor, input_ids: Tensor) -> Tensor:
        """x [B, S, H], input_ids [B, S] -> y [B, S, H]."""
        return self.experts(x, F.one_hot(self.table[input_ids], len(self.experts)).to(x.dtype))


class Distilled(Routed):
    """The second stage of StableMoE (Dai 2022): a small router on embeddings of its own was distilled, and is frozen.

    It tells the expert of each id; the weight is the sigmoid of the token's score for that expert.
    """

    def __init__(self, hidden: int, experts: int = 4, width: int = 8):
        super().__init__(hidden, experts, 1)
        self.words, self.distilled = nn.Embedding(VOCABULARY, width), nn.Linear(width, experts, bias=False)

    def forward(self, x: Tensor, input_ids: Tensor) -> Tensor:
        """x [B, S, H], input_ids [B, S] -> y [B, S, H]."""
        ids = self.distilled(self.words(input_ids)).argmax(-1, keepdim=True)
        scores = torch.sigmoid(self.router(x))
        return self.experts(x, placed(ids, scores.gather(-1, ids), scores))


class Masked(Routed):
    """A table tells which experts an id may have, rare ones a single one; among them softmax top-k (MaskMoE, Su 2024)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__(hidden, experts, chosen)
        first, second = torch.randint(experts, (2, VOCABULARY, 1))
        second = torch.where(torch.arange(VOCABULARY)[:, None] < VOCABULARY // 2, second, first)
        open_to = torch.zeros(VOCABULARY, experts, dtype=torch.bool)
        self.register_buffer("open_to", open_to.scatter(1, first, True).scatter(1, second, True))
        self.open_to: Tensor

    def forward(self, x: Tensor, input_ids: Tensor) -> Tensor:
        """x [B, S, H], input_ids [B, S] -> y [B, S, H]."""
        logits = self.router(x).masked_fill(~self.open_to[input_ids], float("-inf"))
        return self.experts(x, top_k(logits, self.chosen))
