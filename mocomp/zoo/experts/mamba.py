"""State spaces with parts for each modality.

Dimension letters: B batch, S sequence, N heads, D head width, H hidden, M size of the state.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.zoo.experts.modality_blocks import PerModality
from mocomp.zoo.hosts.state_space import HEADS, KERNEL, STATE, scan


class MixtureOfMamba(nn.Module):
    """Mixture-of-Mamba (Liang 2025): the projections of a state-space block per modality; convolution and recurrence shared."""

    def __init__(self, hidden: int):
        super().__init__()
        self.project = PerModality(lambda: nn.Linear(hidden, 2 * hidden, bias=False))
        self.select = PerModality(lambda: nn.Linear(hidden, 2 * STATE + HEADS, bias=False))
        self.out = PerModality(lambda: nn.Linear(hidden, hidden, bias=False))
        self.convolution = nn.Conv1d(hidden, hidden, KERNEL, groups=hidden)
        self.log_decay, self.step = nn.Parameter(torch.zeros(HEADS)), nn.Parameter(torch.zeros(HEADS))

    def forward(self, x: Tensor, modality: Tensor) -> Tensor:
        """x [B, S, H], modality [B, S] -> [B, S, H]."""
        inner, gate = self.project(x, modality).chunk(2, -1)
        mixed = F.silu(self.convolution(F.pad(inner.transpose(1, 2), (KERNEL - 1, 0))).transpose(1, 2))
        b, c, step = self.select(mixed, modality).split([STATE, STATE, HEADS], -1)
        y = scan(mixed.unflatten(-1, (HEADS, -1)), F.softplus(step + self.step), -self.log_decay.exp(), b, c)
        return self.out(y.flatten(2) * F.silu(gate), modality)
