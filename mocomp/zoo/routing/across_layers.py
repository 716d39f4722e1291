"""Routers that are told of the layer before, or that tell the next."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.routing.bank import GatedFeedForward, Routed, renormalised


class Recurrent(Routed):
    """A GRU runs over the layers of each token, and the router reads its state (RMoE, Qiu 2024).

    The paper shares one cell among layers; here each has its own, which the graph computes alike.
    """

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2, width: int = 8):
        super().__init__(hidden, experts, chosen, GatedFeedForward)
        self.project, self.cell = nn.Linear(hidden, width), nn.GRUCell(width, width)
        self.router = nn.Linear(width, experts, bias=False)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, S, H], state [B, S, W] of the layer before -> y [B, S, H], its own state."""
        projected = self.project(x)
        before = torch.zeros_like(projected) if state is None else state
        after = self.cell(projected.flatten(0, 1), before.flatten(0, 1)).view_as(projected)
        return self.experts(x, renormalised(self.router(after), self.chosen)), after


class PreGated(Routed):
    """Each layer's gate chooses for the next, whose experts can be fetched meanwhile (pre-gated MoE, Hwang 2023)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__(hidden, experts, chosen, GatedFeedForward)
        self.next = nn.Linear(hidden, experts, bias=False)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x [B, S, H], state [B, S, E] (logits of the layer before) -> y [B, S, H], logits for the next layer.

        The first layer chooses for itself.
        """
        return self.experts(x, renormalised(self.router(x) if state is None else state, self.chosen)), self.next(x)


class Decoupled(Routed):
    """One router, on the embeddings, chooses for all layers before any of them is run (Read-ME, Cai 2024)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__(hidden, experts, chosen, GatedFeedForward)

    def forward(self, x: Tensor, embedding: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x and embedding [B, S, H], state [B, S, E] (weights of the layer before) -> y [B, S, H], the same weights."""
        weights = renormalised(self.router(embedding), self.chosen) if state is None else state
        return self.experts(x, weights), weights
