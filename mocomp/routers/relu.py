"""ReLU in place of top-k and softmax (ReMoE, Wang 2024, arXiv 2412.14711)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber, Evidence


@dataclass(frozen=True)
class Relu(AnyNumber):
    """Weights max(z, 0); chosen where z > 0."""

    name: ClassVar[str] = "relu"

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.relu(logits)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Relu]:
        if "relu" in evidence.ops and not evidence.tensors:
            yield cls(evidence.experts)
