"""One decision for a whole image (Mobile V-MoE, Daxberger 2023, arXiv 2309.04354), from the mean of its tokens.

With k = E these are the weights by which experts are merged in SMEAR (2023) and WEMoE (2024), of the mean token as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import ANY_OPS, Evidence, Example, Router


@dataclass(frozen=True)
class PerImage(Router):
    """z = the mean of the logits [B, S, E] over the tokens of an image, p = softmax(z); the k largest p, for all its tokens.

    Divided by their sum when `normalize`. The mean of logits is the logit of the mean token, since a router is linear.
    """

    name: ClassVar[str] = "per_image"
    causal: ClassVar[bool] = False
    per_sequence: ClassVar[bool] = True
    normalize: bool = False

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        of_tokens = logits.mean(1, keepdim=True).expand_as(logits).flatten(0, 1)
        _, ids = torch.topk(of_tokens, self.k, -1)
        weights = torch.softmax(of_tokens, -1).gather(-1, ids)
        return ids, weights / weights.sum(-1, keepdim=True) if self.normalize else weights

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[PerImage]:
        if evidence.ops is ANY_OPS and not evidence.tensors:
            yield from (cls(evidence.k, normalize) for normalize in (False, True))

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(cls(k, normalize)) for k, normalize in ((1, False), (2, True)))
