"""Cosines with a vector for each expert (X-MoE, Chi 2022, arXiv 2204.09179; GMoE, Li 2022; DynMoE, Guo 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Cosine(Scorer):
    """z_e = cos(P x, e) / `temperature`; the projection P [width, H], the vectors e [E, width].

    A temperature that was learned is a number by the time of inference. GMoE's and X-MoE's width is half of E or less,
    which keeps tokens from gathering around the vectors.
    """

    name: ClassVar[str] = "cosine"
    width: int = 4
    temperature: float = 0.07

    def reads(self) -> Reads:
        return Reads(weights={"projection": (self.width, self.hidden), "vectors": (self.experts, self.width)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        projection, vectors = tensors
        directions = F.normalize(F.linear(x, projection), dim=-1)
        return F.linear(directions, F.normalize(vectors, dim=-1)) / self.temperature
