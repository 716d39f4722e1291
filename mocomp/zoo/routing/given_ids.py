"""Experts that are chosen by what is known of a whole sequence: its task, language or cluster."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.hosts import TASKS
from mocomp.zoo.routing.bank import Bank, FeedForward, placed, top_k


class TaskLevel(nn.Module):
    """The gate reads the task (or the target language) alone: softmax top-k of a learned row for each (Kudugunta 2021)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__()
        self.chosen, self.gate, self.experts = chosen, nn.Embedding(TASKS, experts), Bank(hidden, experts)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """x [B, S, H], task [B] -> y [B, S, H]."""
        logits = self.gate(task)[:, None].expand(-1, x.shape[1], -1)
        return self.experts(x, top_k(logits, self.chosen))


class ClusterLevel(nn.Module):
    """The best expert for an instruction's cluster with weight g, and a universal one with 1 - g (MoCLE, Gou 2023)."""

    def __init__(self, hidden: int, experts: int = 4, tau: float = 0.5):
        super().__init__()
        self.clusters, self.gate, self.tau = nn.Embedding(TASKS, 8), nn.Linear(8, experts, bias=False), tau
        self.experts, self.universal = Bank(hidden, experts), FeedForward(hidden)

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        """x [B, S, H], task [B] (the cluster) -> y [B, S, H]."""
        logits = self.gate(self.clusters(task))[:, None].expand(-1, x.shape[1], -1) / self.tau
        values, ids = torch.softmax(logits, -1).max(-1, keepdim=True)
        return self.experts(x, placed(ids, values, logits)) + (1 - values) * self.universal(x)
