"""Experts that are convolutions, chosen for a whole image by its mean.

Dimension letters: B batch, E experts, H channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.zoo.experts.parts import top_shares


class MoECNN(nn.Module):
    """A mixture of 3x3 convolutions of which an image has the best two (after DeepMoE, Wang 2018, with whole experts)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__()
        self.router, self.chosen = nn.Linear(hidden, experts), chosen
        self.experts = nn.ModuleList(nn.Conv2d(hidden, hidden, 3, padding=1) for _ in range(experts))

    def shares(self, image: Tensor) -> Tensor:
        """image [B, H, height, width] -> shares [B, E]."""
        return top_shares(self.router(image.mean((2, 3))), self.chosen)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """x [B, height * width, H], image [B, H, height, width] (the same numbers) -> as x."""
        shares = self.shares(image)
        y = torch.zeros_like(image)
        for e, expert in enumerate(self.experts):
            y = y + shares[:, e, None, None, None] * torch.relu(expert(image))
        return y.flatten(2).transpose(1, 2)


class CondConv(nn.Module):
    """CondConv (Yang 2019): an image's kernel is a sum of the experts' kernels, weighed by sigmoids, and is applied once."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.router, self.kernels = nn.Linear(hidden, experts), nn.Parameter(torch.empty(experts, hidden, hidden, 3, 3))

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        """x [B, height * width, H], image [B, H, height, width] (the same numbers) -> as x."""
        shares = torch.sigmoid(self.router(image.mean((2, 3))))
        kernel = torch.einsum("be,eohuv->bohuv", shares, self.kernels).flatten(2)
        height, width = image.shape[2:]
        padded = F.pad(image, (1, 1, 1, 1))
        moved = [padded[:, :, u : u + height, v : v + width] for u in range(3) for v in range(3)]
        columns = torch.stack(moved, 2).flatten(3).flatten(1, 2)
        return (kernel @ columns).transpose(1, 2)
