"""The k largest logits, then softmax over them (Granite-MoE, gpt-oss).

Equal to `softmax_topk` with division; kept apart because that is what these models say they do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, Router, SoftmaxForm


@dataclass(frozen=True)
class TopKSoftmax(Router):
    """The k largest z; weights are their softmax, times `scale`."""

    name: ClassVar[str] = "topk_softmax"
    scale: float = 1.0

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, ids = torch.topk(logits, self.k, -1)
        weights = torch.softmax(values, -1)
        return ids, weights * self.scale if self.scale != 1.0 else weights

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[TopKSoftmax]:
        if "softmax" in evidence.ops and not evidence.tensors:
            yield cls(evidence.k)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(1), cls(3), cls(2, scale=2.5)))

    def scaled(self, factor: float) -> TopKSoftmax:
        return dataclasses.replace(self, scale=self.scale * factor)

    def as_softmax(self) -> SoftmaxForm:
        return SoftmaxForm(over_chosen=True, scale=self.scale)
