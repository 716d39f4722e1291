"""The k largest logits, all of one weight (CMoE, Pei 2025: blocks of a carved feed-forward add up)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, LogScores, Router

FILLED = ("ones", "ones_like", "new_ones", "full", "full_like", "new_full")
"""Ops that make weights out of nothing."""


@dataclass(frozen=True)
class TopKUniform(Router):
    """The k largest z; the weight of each is `scale`."""

    name: ClassVar[str] = "topk_uniform"
    scale: float = 1.0

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids = torch.topk(logits, self.k, -1)
        return ids, torch.full_like(values, self.scale)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[TopKUniform]:
        if not evidence.tensors and any(op in evidence.ops for op in FILLED):
            yield cls(evidence.k)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(1), cls(3), cls(2, scale=0.5)))

    def scaled(self, factor: float) -> TopKUniform:
        return dataclasses.replace(self, scale=self.scale * factor)

    def as_log_scores(self) -> LogScores:
        return LogScores(self._log_scores, self.k * self.scale)

    def _log_scores(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """By ids and not by the k-th value: of experts that tie with it, an operator could take all before the best."""
        _, ids = torch.topk(logits, self.k, -1)
        return torch.full_like(logits, float("-inf")).scatter(-1, ids, 0.0)
