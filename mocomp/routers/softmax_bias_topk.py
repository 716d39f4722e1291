"""Softmax over all experts, and a bias that only chooses (ERNIE 4.5).

The form of inference in Baidu's published code: the bias is the one of loss-free balancing (arXiv 2408.15664), on softmax
in place of sigmoid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, LogScores, Router

NEVER_REACHED = 1e-9
"""A `minimum` that no router reaches: all K chosen would have to have less than this of the softmax together."""


@dataclass(frozen=True)
class SoftmaxBiasTopK(Router):
    """p = softmax(z); chosen by p + bias; weights p, divided by the larger of their sum and `minimum` when `normalize`.

    Weights are taken times `scale`. With `masked`, a logit of -inf says that the expert is never chosen, whatever its
    bias. The tensor is the bias [E].
    """

    name: ClassVar[str] = "softmax_bias_topk"
    normalize: bool = True
    scale: float = 1.0
    minimum: float = 0.0
    masked: bool = False

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = torch.softmax(logits, -1)
        _, ids = torch.topk(self.choice(logits, scores, *tensors), self.k, -1)
        weights = scores.gather(-1, ids)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=self.minimum)
        return ids, weights * self.scale if self.scale != 1.0 else weights

    def choice(self, logits: torch.Tensor, scores: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """logits and scores [T, E] -> the scores by which experts are chosen [T, E]."""
        choice = scores + tensors[0]
        # where, and no sum: the bias of an expert that is masked may be anything, even no number
        return torch.where(logits == float("-inf"), float("-inf"), choice) if self.masked else choice

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[SoftmaxBiasTopK]:
        if "softmax" not in evidence.ops or len(evidence.tensors) != 1:
            return
        minima = [number for number in sorted(evidence.numbers) if 0 < number < 1] if "clamp" in evidence.ops else []
        for normalize, minimum in product((True, False), [*minima, 0.0]):
            if normalize or not minimum:
                yield cls(evidence.k, normalize, minimum=minimum)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        for router in (cls(1), cls(3), cls(3, normalize=False), cls(2, minimum=0.5), cls(2, masked=True)):
            yield Example(router, tensors=((8,),))

    def scaled(self, factor: float) -> SoftmaxBiasTopK:
        return dataclasses.replace(self, scale=self.scale * factor)

    def as_log_scores(self) -> LogScores | None:
        return LogScores(self._log_scores, self.scale) if self.normalize and self.minimum <= NEVER_REACHED else None

    def _log_scores(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        choice = self.choice(logits, torch.softmax(logits, -1), *tensors)
        least = torch.topk(choice, self.k, -1)[0].amin(-1, keepdim=True)
        # the logits are the log of the scores up to a constant, which the softmax that follows takes away
        return torch.where(choice < least, float("-inf"), logits)
