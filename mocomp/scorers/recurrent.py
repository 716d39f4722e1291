"""A state that goes from layer to layer (RMoE, Qiu 2024, arXiv 2408.06793): a GRU cell over depth, for each token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Recurrent(Scorer):
    """h_l = GRU(P x, h_{l-1}), z = h_l W^T; `state` is what the next layer is given.

    P [width, H]; the cell as in `torch.nn.GRUCell`: input and hidden weights [3 width, width], both biases [3 width],
    for reset, update and new in this order; w [E, width]. The first layer is given zeros.
    """

    name: ClassVar[str] = "recurrent"
    width: int = 6

    def reads(self) -> Reads:
        wide, square = (3 * self.width,), (3 * self.width, self.width)
        cell = {"input": square, "hidden": square, "input_bias": wide, "hidden_bias": wide}
        projection = {"projection": (self.width, self.hidden)}
        return Reads({"state": (self.width,)}, {**projection, **cell, "weight": (self.experts, self.width)})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        return F.linear(self.state(x, *tensors), tensors[-1])

    def state(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """The same arguments as of `scores` -> h_l [.., width]."""
        before, projection, into, hidden, into_bias, hidden_bias, _ = tensors
        reset, update, new = F.linear(F.linear(x, projection), into, into_bias).chunk(3, -1)
        reset_h, update_h, new_h = F.linear(before, hidden, hidden_bias).chunk(3, -1)
        kept = torch.sigmoid(update + update_h)
        proposed = torch.tanh(new + torch.sigmoid(reset + reset_h) * new_h)
        return kept * before + (1 - kept) * proposed
