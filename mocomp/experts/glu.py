"""Gated linear units: (act(x Wg) * (x Wu)) Wd, with gpt-oss' slope, shift and clamp as parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch

from mocomp.experts import ACTIVATIONS, Expert

QUICK_GELU = 1.702
"""The slope with which silu is quick_gelu; operators take a slope and not the name."""


@dataclass(frozen=True)
class GLU(Expert):
    """g = min(gate, limit), u = clip(up, limit); act(g) * (u + beta), where silu has slope `alpha`; limit 0 is none."""

    name: ClassVar[str] = "glu"
    gated: ClassVar[bool] = True
    alpha: float = 1.0
    beta: float = 0.0
    limit: float = 0.0

    @property
    def linear_in_up(self) -> bool:
        return not self.beta and not self.limit

    def inner(self, h: torch.Tensor, axis: int = -1) -> torch.Tensor:
        gate, up = h.chunk(2, axis)
        if self.limit:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        act = gate * torch.sigmoid(gate * self.alpha) if self.alpha != 1.0 else ACTIVATIONS[self.activation](gate)
        return act * (up + self.beta if self.beta else up)

    @classmethod
    def guesses(cls, numbers: dict[str, Any]) -> Iterator[GLU]:
        yield from (cls(activation) for activation in ACTIVATIONS if activation != "quick_gelu")
        alphas = [1.0, *(v for name, v in numbers.items() if "alpha" in name), QUICK_GELU]
        limits = [0.0, *(v for name, v in numbers.items() if "limit" in name)]
        for alpha, beta, limit in product(alphas, (0.0, 1.0), limits):
            yield cls("silu", alpha, beta, limit)
