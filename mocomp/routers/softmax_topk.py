"""Softmax over all experts, then the k largest (Shazeer 2017, GShard, Mixtral; k=1 without division: Switch)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import Evidence, Example, Router, SoftmaxForm


@dataclass(frozen=True)
class SoftmaxTopK(Router):
    """p = softmax(z); the k largest p, divided by their sum when `normalize`, times `scale`.

    They are found by z, which has the order of p also where p is too small to be told from 0, the p of a masked expert.
    """

    name: ClassVar[str] = "softmax_topk"
    normalize: bool = False
    scale: float = 1.0

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        _, ids = torch.topk(logits, self.k, -1)
        weights = torch.softmax(logits, -1).gather(-1, ids)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return ids, weights * self.scale if self.scale != 1.0 else weights

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[SoftmaxTopK]:
        if "softmax" in evidence.ops and not evidence.tensors:
            yield from (cls(evidence.k, normalize) for normalize in (True, False) if not normalize or "div" in evidence.ops)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(1), cls(3), cls(3, normalize=True), cls(2, scale=2.5)))

    def scaled(self, factor: float) -> SoftmaxTopK:
        return dataclasses.replace(self, scale=self.scale * factor)

    def as_softmax(self) -> SoftmaxForm:
        return SoftmaxForm(over_chosen=self.normalize, scale=self.scale)
