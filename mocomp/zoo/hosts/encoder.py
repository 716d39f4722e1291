"""A classifier of text, as BERT: attention both ways, except to what is padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from mocomp.zoo import HIDDEN
from mocomp.zoo.hosts import TASK, VOCABULARY, Host, Input
from mocomp.zoo.hosts.attention import Layer

LONGEST = 64
CLASSES = 5


class Encoder(Host):
    """input_ids [B, S], attention_mask [B, S] (1 for what is not padding) -> logits [B, C]."""

    inputs: ClassVar[dict[str, Input]] = {
        "input_ids": Input(("batch", "sequence"), VOCABULARY),
        "attention_mask": Input(("batch", "sequence"), 2),
        "task": TASK,
    }

    def __init__(self, mechanism: Callable[[], nn.Module]):
        super().__init__(mechanism)
        self.embed, self.position = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(LONGEST, HIDDEN)
        self.layers = nn.ModuleList(Layer(HIDDEN, mechanism()) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, task: Tensor | None = None) -> Tensor:
        """input_ids [B, S], attention_mask [B, S], task [B] -> logits [B, C]."""
        x = self.embed(input_ids) + self.position(torch.arange(input_ids.shape[1], device=input_ids.device))
        known = {"input_ids": input_ids, "embedding": x, "attention_mask": attention_mask}
        known |= {} if task is None else {"task": task}
        for layer in self.layers:
            x = layer(x, known, attention_mask[:, None, None] == 1)
        present = attention_mask[..., None].to(x.dtype)
        return self.head((self.norm(x) * present).sum(1) / present.sum(1).clamp(min=1))
