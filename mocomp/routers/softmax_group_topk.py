"""Softmax over all experts, then the k largest among the best groups of them (DeepSeek-V2, 2024, section 2.2.2).

The paper's device-limited routing as its published code infers: a group is judged by its best expert. There the softmax
of the experts in other groups is set to 0, so that no more than `groups_kept` groups are chosen from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, LogScores, Router


@dataclass(frozen=True)
class SoftmaxGroupTopK(Router):
    """p = softmax(z); of `groups` equal groups the `groups_kept` whose largest p are largest; the k largest p in them.

    Weights are p, divided by their sum when `normalize`, times `scale`.
    """

    name: ClassVar[str] = "softmax_group_topk"
    groups: int = 2
    groups_kept: int = 1
    normalize: bool = False
    scale: float = 1.0

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, ids = torch.topk(self.choice(logits), self.k, -1)
        weights = torch.softmax(logits, -1).gather(-1, ids)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return ids, weights * self.scale if self.scale != 1.0 else weights

    def choice(self, logits: torch.Tensor) -> torch.Tensor:
        """logits [T, E] -> the same, -inf in groups that were not kept; softmax has the order of its logits."""
        grouped = logits.reshape(-1, self.groups, logits.shape[-1] // self.groups)  # [T, groups, E / groups]
        best = grouped.amax(-1, keepdim=True)
        weakest = torch.topk(best, self.groups_kept, 1)[0].amin(1, keepdim=True)
        return torch.where(best < weakest, float("-inf"), grouped).reshape(logits.shape)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[SoftmaxGroupTopK]:
        if "softmax" not in evidence.ops or evidence.tensors or len(evidence.topks) < 2:
            return
        counts = [g for g in range(2, evidence.experts) if evidence.experts % g == 0]
        for groups, kept, normalize in product(counts, sorted(set(evidence.topks)), (False, True)):
            if kept < groups and evidence.k <= kept * evidence.experts // groups:
                yield cls(evidence.k, groups, kept, normalize)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(2, 4, 2), cls(3, 4, 2, True, 1.5), cls(2, 2, 1)))

    def scaled(self, factor: float) -> SoftmaxGroupTopK:
        return dataclasses.replace(self, scale=self.scale * factor)

    def as_log_scores(self) -> LogScores | None:
        return LogScores(self._log_scores, self.scale) if self.normalize else None

    def _log_scores(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        choice = self.choice(logits)
        least = torch.topk(choice, self.k, -1)[0].amin(-1, keepdim=True)
        return torch.where(choice < least, float("-inf"), choice)
