"""SparseMixer-v2 as Phi-3.5-MoE runs it at inference (arXiv 2409.12136): the best, then the best of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Router


@dataclass(frozen=True)
class SparseMixer(Router):
    """For each choice: logits further than 2 `jitter` (relative) from the largest are masked, weight = softmax there.

    The second choice masks the first expert out before it looks for the largest; distances are relative to the
    larger of |z| and that maximum, over the unmasked logits of all experts.
    """

    name: ClassVar[str] = "sparse_mixer"
    jitter: float = 0.01

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        remaining, chosen, weights = logits, [], []
        for _ in range(self.k):
            largest, best = remaining.max(-1, keepdim=True)
            distance = (largest - logits) / torch.maximum(logits.abs(), largest)
            near = torch.where(distance > 2 * self.jitter, float("-inf"), remaining)
            weights.append(torch.softmax(near, -1).gather(-1, best))
            chosen.append(best)
            remaining = remaining.scatter(-1, best, float("-inf"))
        return torch.cat(chosen, -1), torch.cat(weights, -1)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[SparseMixer]:
        if "max" in evidence.ops and not evidence.tensors:
            yield from (cls(evidence.k, number / 2) for number in sorted(evidence.numbers) if 0 < number < 1)
