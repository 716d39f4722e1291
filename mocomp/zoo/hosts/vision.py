"""A vision transformer (Dosovitskiy 2020): patches, a class token, learned positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from mocomp.zoo import HIDDEN
from mocomp.zoo.hosts import TASK, Host, Input
from mocomp.zoo.hosts.attention import Layer

SIDE, PATCH = 12, 4
CLASSES = 5


class Vision(Host):
    """pixels [B, 3, 12, 12] -> logits [B, C]."""

    inputs: ClassVar[dict[str, Input]] = {"pixels": Input(("batch", 3, SIDE, SIDE)), "task": TASK}

    def __init__(self, mechanism: Callable[[], nn.Module]):
        super().__init__(mechanism)
        self.patches = nn.Conv2d(3, HIDDEN, PATCH, PATCH)
        self.token = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.position = nn.Parameter(torch.zeros(1, 1 + (SIDE // PATCH) ** 2, HIDDEN))
        self.layers = nn.ModuleList(Layer(HIDDEN, mechanism()) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, pixels: Tensor, task: Tensor | None = None) -> Tensor:
        """pixels [B, 3, 12, 12], task [B] -> logits [B, C]."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        known = {"embedding": x} | ({} if task is None else {"task": task})
        for layer in self.layers:
            x = layer(x, known)
        return self.head(self.norm(x[:, 0]))
