"""A state-space decoder, as Mamba-2 (Dao and Gu 2024), its recurrence written in the dual form: one masked product.

h_t = exp(dt_t a) h_{t-1} + dt_t b_t x_t and y_t = c_t h_t, so y = (L * C B^T) (dt x) with L_ij = exp(sum of dt a from j + 1
to i), 0 above the diagonal. That is the recurrence itself, for any length, without a loop.
Dimension letters: B batch, S sequence, N heads, D head width, H hidden, M size of the state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.zoo import HIDDEN
from mocomp.zoo.hosts import TASK, VOCABULARY, Host, Input, Slot
from mocomp.zoo.hosts.attention import causal

HEADS, STATE, KERNEL = 4, 8, 3


class SelectiveScan(nn.Module):
    """A causal convolution over positions, a selective state space, and a gate."""

    def __init__(self, hidden: int):
        super().__init__()
        self.project = nn.Linear(hidden, 2 * hidden + 2 * STATE + HEADS, bias=False)
        self.convolution = nn.Conv1d(hidden, hidden, KERNEL, groups=hidden)
        self.log_decay, self.step, self.skip = (nn.Parameter(torch.zeros(HEADS)) for _ in range(3))
        self.out = nn.Linear(hidden, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, H]."""
        inner, gate, b, c, step = self.project(x).split([x.shape[-1], x.shape[-1], STATE, STATE, HEADS], -1)
        padded = F.pad(inner.transpose(1, 2), (KERNEL - 1, 0))
        heads = F.silu(self.convolution(padded)).transpose(1, 2).unflatten(-1, (HEADS, -1))
        y = scan(heads, F.softplus(step + self.step), -self.log_decay.exp(), b, c) + self.skip[:, None] * heads
        return self.out(y.flatten(2) * F.silu(gate))


def scan(x: Tensor, step: Tensor, decay: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """x [B, S, N, D], step [B, S, N], decay [N], b and c [B, S, M] -> y [B, S, N, D]."""
    elapsed = (step * decay).cumsum(1).transpose(1, 2)  # [B, N, S]
    between = elapsed[..., :, None] - elapsed[..., None, :]
    kept = torch.where(causal(x), between, float("-inf")).exp()
    mixing = kept * (c @ b.transpose(1, 2))[:, None]  # [B, N, S, S]
    return (mixing @ (x * step[..., None]).transpose(1, 2)).transpose(1, 2)


class StateSpace(Host):
    """input_ids [B, S] -> logits [B, S, V]; modality [B, S] for mechanisms that want it."""

    inputs: ClassVar[dict[str, Input]] = {
        "input_ids": Input(("batch", "sequence"), VOCABULARY),
        "modality": Input(("batch", "sequence"), 2, optional=True),
        "task": TASK,
    }

    def __init__(self, mechanism: Callable[[], nn.Module]):
        super().__init__(mechanism)
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.norms = nn.ModuleList(nn.RMSNorm(HIDDEN) for _ in range(4))
        self.scans = nn.ModuleList(SelectiveScan(HIDDEN) for _ in range(2))
        self.mixtures = nn.ModuleList(Slot(mechanism()) for _ in range(2))
        self.norm, self.head = nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, modality: Tensor | None = None, task: Tensor | None = None) -> Tensor:
        """input_ids and modality [B, S], task [B] -> logits [B, S, V]."""
        x = self.embed(input_ids)
        given = {"input_ids": input_ids, "embedding": x, "modality": modality, "task": task}
        known = {name: tensor for name, tensor in given.items() if tensor is not None}
        for i, (mixer, mixture) in enumerate(zip(self.scans, self.mixtures, strict=True)):
            x = x + mixer(self.norms[2 * i](x))
            x = x + mixture(self.norms[2 * i + 1](x), known)
        return self.head(self.norm(x))
