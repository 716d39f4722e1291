"""Softmax over all experts, then the k largest (Shazeer 2017, GShard, Mixtral; k=1 without division: Switch)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Router, SoftmaxForm


@dataclass(frozen=True)
class SoftmaxTopK(Router):
    """p = softmax(z); the k largest p, divided by their sum when `normalize`, times `scale`."""

    name: ClassVar[str] = "softmax_topk"
    normalize: bool = False
    scale: float = 1.0

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weights, ids = torch.topk(torch.softmax(logits, -1), self.k, -1)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return ids, weights * self.scale if self.scale != 1.0 else weights

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[SoftmaxTopK]:
        if "softmax" in evidence.ops and not evidence.tensors:
            yield from (cls(evidence.k, normalize) for normalize in (True, False) if not normalize or "div" in evidence.ops)

    def scaled(self, factor: float) -> SoftmaxTopK:
        return dataclasses.replace(self, scale=self.scale * factor)

    def as_softmax(self) -> SoftmaxForm:
        return SoftmaxForm(over_chosen=self.normalize, scale=self.scale)
