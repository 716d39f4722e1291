"""Thresholds that were learned, one by expert (DynMoE, Guo 2024, arXiv 2405.14297).

The scores are cosines, see `mocomp.scorers.cosine`; at inference a token that no expert takes goes to its best one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber, Evidence, Example


@dataclass(frozen=True)
class CosineThreshold(AnyNumber):
    """Chosen where sigmoid(z_e) > sigmoid(g_e), or the largest z where there is none; the n chosen weigh 1 / n each.

    The tensor is g [E]. It is z > g that is asked, which is the same without the rounding of the sigmoid.
    """

    name: ClassVar[str] = "cosine_threshold"

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        (thresholds,) = tensors
        above = logits > thresholds
        best = logits == logits.amax(-1, keepdim=True)
        chosen = (above | (best & ~above.any(-1, keepdim=True))) & (logits > float("-inf"))
        return chosen.to(logits.dtype) / chosen.sum(-1, keepdim=True).clamp(min=1)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[CosineThreshold]:
        if evidence.tensors == ((evidence.experts,),) and "gt" in evidence.ops:
            yield cls(evidence.experts)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield Example(cls(8), tensors=((8,),))
