"""The nearest code decides (VQMoE, Do 2024, arXiv 2411.19402): `topk_uniform` with k = 1 takes what is nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Codebook(Scorer):
    """z_e = the largest over the codes c of expert e of -|P x - c|^2; P [width, H], codes [E, each, width].

    The paper assigns each code to an expert; here every expert has as many, `each`.
    """

    name: ClassVar[str] = "codebook"
    width: int = 5
    each: int = 2

    def reads(self) -> Reads:
        codes = (self.experts, self.each, self.width)
        return Reads(weights={"projection": (self.width, self.hidden), "codes": codes})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        projection, codes = tensors
        away = F.linear(x, projection)[..., None, None, :] - codes
        return -(away * away).sum(-1).amin(-1)
