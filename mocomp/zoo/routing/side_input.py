"""Routers that read more than the token's hidden state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.hosts import TASKS
from mocomp.zoo.routing.bank import Routed, top_k


class SharedEmbedding(Routed):
    """The router reads the hidden state and an embedding that all layers share; top-1, weight p (SpeechMoE, You 2021)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 1):
        super().__init__(hidden, experts, chosen)
        self.router = nn.Linear(2 * hidden, experts, bias=False)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x [B, S, H], embedding [B, S, H] -> y [B, S, H]."""
        return self.experts(x, top_k(self.router(torch.cat([x, embedding], -1)), self.chosen))


class DomainEmbedding(Routed):
    """It reads an embedding of the speaker's domain too (SpeechMoE2, You 2021)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 1):
        super().__init__(hidden, experts, chosen)
        self.domains = nn.Embedding(TASKS, 8)
        self.router = nn.Linear(2 * hidden + 8, experts, bias=False)

    def forward(self, x: Tensor, embedding: Tensor, task: Tensor) -> Tensor:
        """x [B, S, H], embedding [B, S, H], task [B] (the domain) -> y [B, S, H]."""
        domain = self.domains(task)[:, None].expand(-1, x.shape[1], -1)
        return self.experts(x, top_k(self.router(torch.cat([x, embedding, domain], -1)), self.chosen))
