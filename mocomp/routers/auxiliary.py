"""A second router that foretells what experts would choose (MoMa 2024, section 2.4; mixture-of-depths 2024).

The causal form of `expert_choice`, for inference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber, Example


@dataclass(frozen=True)
class Auxiliary(AnyNumber):
    """Expert e takes token t where sigmoid(a) > 0.5, weight sigmoid(z). The tensor is a [T, E], the auxiliary logits.

    Masked logits are taken out by name: ONNX Runtime's sigmoid is off by up to 1e-7, so its value at -inf is not relied on.
    """

    name: ClassVar[str] = "auxiliary"

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        (auxiliary,) = tensors
        chosen = (auxiliary > 0) & (logits > float("-inf"))  # sigmoid(a) > 0.5 without its rounding
        return torch.where(chosen, torch.sigmoid(logits), 0.0)

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield Example(cls(8), tensors=((None, 8),))
