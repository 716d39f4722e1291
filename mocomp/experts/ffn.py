"""Plain feed-forward experts: act(x W1 + b1) W2 + b2 (Switch, V-MoE, Nemotron-H with squared relu)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mocomp.experts import ACTIVATIONS, Expert


@dataclass(frozen=True)
class FFN(Expert):
    """act(h)."""

    name: ClassVar[str] = "ffn"

    def inner(self, h: torch.Tensor, axis: int = -1) -> torch.Tensor:
        return ACTIVATIONS[self.activation](h)

    @classmethod
    def guesses(cls, numbers: dict[str, Any]) -> Iterator[FFN]:
        yield from (cls(activation) for activation in ACTIVATIONS)
