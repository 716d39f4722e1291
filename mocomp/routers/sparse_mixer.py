"""SparseMixer-v2 as Phi-3.5-MoE runs it at inference (arXiv 2409.12136): the best, then the best of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, Router


@dataclass(frozen=True)
class SparseMixer(Router):
    """For each choice: logits further than 2 `jitter` (relative) from the largest are masked, weight = softmax there.

    The second choice masks the first expert out before it looks for the largest; distances are relative to the
    larger of |z| and that maximum, over the unmasked logits of all experts.
    """

    name: ClassVar[str] = "sparse_mixer"
    jitter: float = 0.01

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids = torch.topk(logits, self.k, -1)
        experts, remaining = torch.arange(logits.shape[-1], device=logits.device), [logits]
        for j in range(self.k - 1):
            remaining.append(torch.where(experts == ids[:, j : j + 1], float("-inf"), remaining[-1]))
        largest_TK1, logits_T1E = values[..., None], logits[:, None]
        distance_TKE = (largest_TK1 - logits_T1E) / torch.maximum(logits_T1E.abs(), largest_TK1)
        near_TKE = torch.where(distance_TKE > 2 * self.jitter, float("-inf"), torch.stack(remaining, 1))
        return ids, torch.softmax(near_TKE, -1).amax(-1)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[SparseMixer]:
        if "max" in evidence.ops and not evidence.tensors:
            numbers = [number for number in sorted(evidence.numbers) if 0 < number < 1]
            yield from (cls(evidence.k, number / 2) for number in numbers)  # a trace shows twice the jitter,
            yield from (cls(evidence.k, number) for number in numbers)  # and a module the jitter itself

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(1), cls(3), cls(2, jitter=0.25)))
