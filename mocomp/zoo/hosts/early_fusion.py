"""An early-fusion decoder, as Chameleon and MoMa: tokens of text and patches of images in one sequence, in any order."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from mocomp.zoo import HIDDEN
from mocomp.zoo.hosts import TASK, VOCABULARY, Host, Input
from mocomp.zoo.hosts.attention import Layer, causal, rotary_angles

PATCH = 12


class EarlyFusion(Host):
    """input_ids [B, S], patches [B, S, P], modality [B, S] (0 text, 1 image) -> logits [B, S, V].

    Where the modality says image, the patch is read, and elsewhere the token.
    """

    inputs: ClassVar[dict[str, Input]] = {
        "input_ids": Input(("batch", "sequence"), VOCABULARY),
        "patches": Input(("batch", "sequence", PATCH)),
        "modality": Input(("batch", "sequence"), 2),
        "task": TASK,
    }

    def __init__(self, mechanism: Callable[[], nn.Module]):
        super().__init__(mechanism)
        self.embed, self.project = nn.Embedding(VOCABULARY, HIDDEN), nn.Linear(PATCH, HIDDEN)
        self.layers = nn.ModuleList(Layer(HIDDEN, mechanism(), nn.RMSNorm) for _ in range(2))
        self.norm, self.head = nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, patches: Tensor, modality: Tensor, task: Tensor | None = None) -> Tensor:
        """The inputs of the class, task [B] -> logits [B, S, V]."""
        x = torch.where(modality[..., None] == 1, self.project(patches), self.embed(input_ids))
        known = {"input_ids": input_ids, "modality": modality, "embedding": x} | ({} if task is None else {"task": task})
        for layer in self.layers:
            x = layer(x, known, causal(x), rotary_angles(x))
        return self.head(self.norm(x))
