"""An encoder-decoder, as T5 and NLLB: the decoder sees its own past and all that the encoder read."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn

from mocomp.zoo import HIDDEN
from mocomp.zoo.hosts import TASK, VOCABULARY, Host, Input
from mocomp.zoo.hosts.attention import Attention, Layer, causal

LONGEST = 64


class EncoderDecoder(Host):
    """input_ids [B, S], decoder_input_ids [B, R] -> logits [B, R, V]; a mechanism in the encoder, and one in the decoder."""

    inputs: ClassVar[dict[str, Input]] = {
        "input_ids": Input(("batch", "sequence"), VOCABULARY),
        "decoder_input_ids": Input(("batch", "target"), VOCABULARY),
        "task": TASK,
    }

    def __init__(self, mechanism: Callable[[], nn.Module]):
        super().__init__(mechanism)
        self.embed, self.position = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(LONGEST, HIDDEN)
        self.encoder, self.decoder = Layer(HIDDEN, mechanism()), Layer(HIDDEN, mechanism())
        self.before_cross, self.cross = nn.LayerNorm(HIDDEN), Attention(HIDDEN)
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, decoder_input_ids: Tensor, task: Tensor | None = None) -> Tensor:
        """input_ids [B, S], decoder_input_ids [B, R], task [B] -> logits [B, R, V]."""
        given = {} if task is None else {"task": task}
        x = self._embedded(input_ids)
        memory = self.encoder(x, given | {"input_ids": input_ids, "embedding": x})
        y = self._embedded(decoder_input_ids)
        known = given | {"input_ids": decoder_input_ids, "embedding": y}
        y = y + self.cross(self.before_cross(y), memory)
        y = self.decoder(y, known, causal(y))
        return self.head(self.norm(y))

    def _embedded(self, ids: Tensor) -> Tensor:
        return self.embed(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
