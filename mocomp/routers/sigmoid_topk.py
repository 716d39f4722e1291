"""Sigmoid scores, a bias that only chooses, and groups of experts (DeepSeek-V3, GLM-4.5; Llama 4 without the rest).

The form of inference in the DeepSeek-V3 report, section 2.1.2, and of its published code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.errors import Unsupported
from mocomp.routers import Evidence, Example, LogScores, Router


@dataclass(frozen=True)
class SigmoidTopK(Router):
    """s = sigmoid(z); chosen by s + bias; weights s, divided by their sum when `normalize`, times `scale`.

    With `groups` > 1 the experts stand in that many equal groups; a group's score is the sum of its two best
    s + bias, and only the `groups_kept` best groups take part. The optional tensor is the bias [E].

    `masked` says that logits may be -inf: their s is 0, and with a bias above 0 they could be chosen. Not with `groups`:
    the groups that a mask leaves need not be as many as are kept.
    """

    name: ClassVar[str] = "sigmoid_topk"
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    groups_kept: int = 1
    masked: bool = False

    def __post_init__(self) -> None:
        if self.masked and self.groups > 1:
            raise Unsupported("groups of experts together with masked logits", where=self.name)

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.sigmoid(logits)
        _, ids = torch.topk(self.choice(logits, scores, *tensors), self.k, -1)
        weights = scores.gather(-1, ids)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * self.scale if self.scale != 1.0 else weights

    def choice(self, logits: torch.Tensor, scores: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """logits, scores [T, E] -> by what experts are chosen [T, E], -inf where masked and in groups that were not kept."""
        choice = scores + tensors[0] if tensors else scores
        if self.masked:
            choice = torch.where(logits > float("-inf"), choice, logits)
        if self.groups == 1:
            return choice
        experts = choice.shape[-1]
        grouped = choice.reshape(-1, self.groups, experts // self.groups)  # [T, groups, E / groups]
        group_scores = torch.topk(grouped, 2, -1)[0].sum(-1, keepdim=True)
        weakest = torch.topk(group_scores, self.groups_kept, 1)[0].amin(1, keepdim=True)
        return torch.where(group_scores < weakest, float("-inf"), grouped).reshape(-1, experts)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[SigmoidTopK]:
        if "sigmoid" not in evidence.ops or len(evidence.tensors) > 1:
            return
        counts = [g for g in range(2, evidence.experts) if evidence.experts % g == 0] if len(evidence.topks) > 1 else []
        grouped = [(g, kept) for g in counts for kept in sorted(set(evidence.topks)) if kept < g]
        for (groups, kept), normalize in product([(1, 1), *grouped], (True, False)):
            yield cls(evidence.k, normalize, 1.0, groups, kept)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(1), cls(3, normalize=False), cls(2, groups=4, groups_kept=2)))
        grouped = (cls(3), cls(2, False, groups=4, groups_kept=2), cls(2, masked=True))
        yield from (Example(router, tensors=((8,),)) for router in grouped)

    def scaled(self, factor: float) -> SigmoidTopK:
        return dataclasses.replace(self, scale=self.scale * factor)

    def as_log_scores(self) -> LogScores | None:
        return LogScores(self._log_scores, self.scale) if self.normalize else None

    def _log_scores(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        scores = torch.sigmoid(logits)
        choice = self.choice(logits, scores, *tensors)
        least = torch.topk(choice, self.k, -1)[0].amin(-1, keepdim=True)
        return torch.where(choice < least, float("-inf"), scores.log())
