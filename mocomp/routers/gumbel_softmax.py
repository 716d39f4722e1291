"""All experts, by a softmax with a temperature (GG MoE 2025; soft mixtures since Jacobs 1991 with temperature 1).

In training Gumbel noise is added to the logits; at inference there is none, and all experts stay.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber, Evidence, Example


@dataclass(frozen=True)
class GumbelSoftmax(AnyNumber):
    """Weights softmax(z / `temperature`) over all experts."""

    name: ClassVar[str] = "gumbel_softmax"
    temperature: float = 1.0

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        return torch.softmax(logits / self.temperature, -1)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[GumbelSoftmax]:
        """Of temperature 1, which is `softmax_topk` of all experts, none."""
        if "softmax" in evidence.ops and evidence.k == evidence.experts and not evidence.tensors:
            found = {t for number in evidence.numbers if number > 0 for t in (number, 1 / number)}
            yield from (cls(evidence.experts, temperature) for temperature in sorted(found - {1.0})[:16])

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(cls(8, temperature)) for temperature in (1.0, 0.5))
