"""Floats of 4 bits: a sign, two bits of exponent, one of mantissa. The formats of them differ in the scales of blocks."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mocomp.errors import Usage
from mocomp.quant.formats import Format, Grid

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of codes 0 to 7; the fourth bit is the sign."""
BETWEEN = (0.25, 0.75 - 2**-24, 1.25, 1.75 - 2**-23, 2.5, 3.5 - 2**-22, 5.0)
"""The largest float32 that rounds down, for each pair of neighbours: ties go to the even code."""
REACH = 7.0
"""The magnitude that is off by half the largest step, that from 4 to 6, when it is cut to 6."""


@dataclass(frozen=True)
class E2M1(Format):
    """w = value(code) * scale, two codes in a byte, the first in the low half."""

    bits: ClassVar[int] = 4

    @property
    def text(self) -> str:
        return self.name

    @classmethod
    def of(cls, arguments: list[str]) -> E2M1:
        if arguments:
            raise Usage(f"{':'.join([cls.name, *arguments])}", fix=f"Its blocks are always of {cls.block}: {cls.name}")
        return cls()

    @abstractmethod
    def candidates(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """Two storable scales [..., N, G], a finer and a coarser one, for tiles whose largest magnitude is top [..., N, G].
        The coarser one is at least top / 7, so that no weight is off by more than half the largest step."""

    def fit(self, w: Tensor) -> Grid:
        """The one of two scales that leaves the tile the smaller squared error, the finer one where they are alike."""
        cut = self.tiles(w)
        top = cut.abs().amax(-1)
        fine, coarse = self.candidates(top)
        better = self._error(cut, coarse) < self._error(cut, fine)
        return self.storable(Grid(torch.where(better | (top > REACH * fine), coarse, fine)))

    def nearest(self, x: Tensor) -> Tensor:
        magnitude = torch.bucketize(x.abs(), x.new_tensor(BETWEEN), out_int32=True).to(torch.uint8)
        return magnitude | (torch.signbit(x).to(torch.uint8) << 3)

    def value(self, codes: Tensor) -> Tensor:
        both = (*VALUES, *(-value for value in VALUES))
        return torch.tensor(both, dtype=torch.float32, device=codes.device)[codes.to(torch.int32)]

    def _error(self, cut: Tensor, scale: Tensor) -> Tensor:
        """The squared error of tiles cut [..., N, G, block], [..., N, G]; of each tile in a unit of its own, as the square of
        a small weight is none in float32."""
        scale = scale.unsqueeze(-1)
        unit = cut.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return ((self.value(self.nearest(cut / scale)) * scale - cut) / unit).square().sum(-1)
