"""Experts compete by the size of what they give (CompeteSMoE, Pham 2024, arXiv 2402.02526): in training, at times.

At inference the paper routes by a linear router that has learned to foretell this, which is `linear`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Competition(Scorer):
    """z_e = |f_e(x)|, given f [.., E, H], what all experts make of the token."""

    name: ClassVar[str] = "competition"

    def reads(self) -> Reads:
        return Reads({"outputs": (self.experts, self.hidden)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return torch.linalg.vector_norm(tensors[0], dim=-1)
