"""Experts that do nothing compete with those that do (AdaMoE, Zeng 2024, arXiv 2406.13233)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, Router


@dataclass(frozen=True)
class Null(Router):
    """z [T, E + `nulls`], the null experts last; the k largest p = softmax(z), of which only the real ones run.

    The weights of the real ones are divided by their sum when `normalize`, as in the paper; a token all of
    whose choices are null has no expert. A null choice is id 0 with weight 0.
    """

    name: ClassVar[str] = "null"
    fixed: ClassVar[bool] = False
    nulls: int = 1
    normalize: bool = True

    def columns(self, experts: int) -> int:
        return experts + self.nulls

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, ids = torch.topk(logits, self.k, -1)
        is_real = ids < logits.shape[-1] - self.nulls
        weights = torch.where(is_real, torch.softmax(logits, -1).gather(-1, ids), 0.0)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
        return torch.where(is_real, ids, 0), weights

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Null]:
        """None: logits of E + N columns are not those of E experts, which is where one looks for a router."""
        return iter(())

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(3, 4), cls(2, 8, normalize=False)))
