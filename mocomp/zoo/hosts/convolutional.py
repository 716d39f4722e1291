"""A residual convolutional classifier (He 2015) whose mechanism sees each position of the feature map as a token."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from mocomp.zoo import HIDDEN
from mocomp.zoo.hosts import TASK, Host, Input, Slot

CLASSES = 5


class Stage(nn.Module):
    """A residual 3x3 convolution, then the mechanism on the positions, added to them."""

    def __init__(self, mechanism: nn.Module):
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(HIDDEN, HIDDEN, 3, padding=1), nn.BatchNorm2d(HIDDEN)
        self.mixture = Slot(mechanism)

    def forward(self, x: Tensor, known: dict[str, Tensor]) -> Tensor:
        """x [B, H, height, width] -> the same shape."""
        x = known["image"] = x + torch.relu(self.norm(self.convolution(x)))
        tokens = x.flatten(2).transpose(1, 2)
        return x + self.mixture(tokens, known).transpose(1, 2).reshape(x.shape)


class Convolutional(Host):
    """pixels [B, 3, height, width] -> logits [B, C]."""

    inputs: ClassVar[dict[str, Input]] = {"pixels": Input(("batch", 3, "height", "width")), "task": TASK}

    def __init__(self, mechanism: Callable[[], nn.Module]):
        super().__init__(mechanism)
        self.stem = nn.Conv2d(3, HIDDEN, 4, 4)
        self.stages = nn.ModuleList(Stage(mechanism()) for _ in range(2))
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, pixels: Tensor, task: Tensor | None = None) -> Tensor:
        """pixels [B, 3, height, width], task [B] -> logits [B, C]."""
        x = self.stem(pixels)
        known = {} if task is None else {"task": task}
        for stage in self.stages:
            x = stage(x, known)
        return self.head(x.mean((2, 3)))
