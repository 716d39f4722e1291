"""The router reads an embedding beside the token (SpeechMoE, You 2021, arXiv 2105.03036; SpeechMoE2; MoR1E).

What network makes the embedding, of the frame, the domain, the accent or the instruction, is the model's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class SideInput(Scorer):
    """z = [x, s] W^T, for s [.., side] of each token; w [E, H + side]."""

    name: ClassVar[str] = "side_input"
    side: int = 6

    def reads(self) -> Reads:
        return Reads({"side": (self.side,)}, {"weight": (self.experts, self.hidden + self.side)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        side, weight = tensors
        return F.linear(torch.cat([x, side], -1), weight)
