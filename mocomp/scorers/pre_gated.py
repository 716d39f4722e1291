"""A layer's experts are chosen by what came to the layer before it (Pre-gated MoE, Hwang 2023, arXiv 2308.12066).

One router that chooses for all layers ahead (Read-ME, Cai 2024) is the same with the model's first hidden states.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class PreGated(Scorer):
    """z = b W^T, for b [.., H], the hidden states that an earlier layer was given; w [E, H]. x is not read."""

    name: ClassVar[str] = "pre_gated"

    def reads(self) -> Reads:
        return Reads({"before": (self.hidden,)}, {"weight": (self.experts, self.hidden)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return F.linear(*tensors)
