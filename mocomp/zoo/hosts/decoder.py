"""A decoder of text, as Llama's layers are: causal attention with rotary positions, RMS norms, logits over a vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from mocomp.zoo import HIDDEN
from mocomp.zoo.hosts import TASK, VOCABULARY, Host, Input
from mocomp.zoo.hosts.attention import Layer, causal, rotary_angles


class Decoder(Host):
    """input_ids [B, S] -> logits [B, S, V]."""

    inputs: ClassVar[dict[str, Input]] = {"input_ids": Input(("batch", "sequence"), VOCABULARY), "task": TASK}

    def __init__(self, mechanism: Callable[[], nn.Module]):
        super().__init__(mechanism)
        self.embed = nn.Embedding(VOCABULARY, HIDDEN)
        self.layers = nn.ModuleList(Layer(HIDDEN, mechanism(), nn.RMSNorm) for _ in range(2))
        self.norm, self.head = nn.RMSNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, task: Tensor | None = None) -> Tensor:
        """input_ids [B, S], task [B] -> logits [B, S, V]."""
        x = self.embed(input_ids)
        known = {"input_ids": input_ids, "embedding": x} | ({} if task is None else {"task": task})
        for layer in self.layers:
            x = layer(x, known, causal(x), rotary_angles(x))
        return self.head(self.norm(x))
