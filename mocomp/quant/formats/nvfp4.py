"""NVFP4: floats of 4 bits, 16 of which share a float of 8 bits, and one float32 scale for all of an expert's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mocomp.errors import MocompError
from mocomp.quant.e2m1 import E2M1
from mocomp.quant.formats import Grid, Stored, pack_bits, unpack_bits
from mocomp.quant.integer import SMALLEST

LARGEST = 448.0
LEAST = 2.0**-9
"""The largest and the least that float8_e4m3fn holds above zero."""
SPARE = 4
"""Bits of the 24 of a float32 that `whole` leaves empty. A float8_e4m3fn has 4 itself, so that products of the two are exact,
and the largest of them divided by 448 gives back the very same `whole`, also on devices that multiply by 1 / 448."""


@dataclass(frozen=True)
class NVFP4(E2M1):
    """Scales float8_e4m3fn [..., N, K/16], and `whole` [...] float32, under which the largest scale is 448.

    The grid's scale is the product of both. `whole` belongs to all rows and columns at once: the storable grid of a part of a
    weight is not a part of the storable grid of the weight.
    """

    name: ClassVar[str] = "nvfp4"
    block: int = 16

    def candidates(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """Scales that take the largest to 6 and to 4, as Four Over Six does (Cook et al., 2025): the step below 6 is coarse,
        and a tile may be better off without it. The expert's largest scale, which `whole` is made from, stays."""
        fine = self.storable(Grid(top / 6)).scale
        limit = fine.amax((-2, -1), keepdim=True)
        return fine, self.storable(Grid(torch.minimum(top / 4, limit))).scale

    def storable(self, grid: Grid) -> Grid:
        scales, whole = _split(grid.scale)
        return Grid(_product(scales, whole))

    def pack(self, codes: Tensor, grid: Grid) -> Stored:
        scales, whole = _split(grid.scale)
        if not torch.equal(_product(scales, whole), grid.scale):
            raise MocompError("scales that `storable` did not make, or made of a part of the weight", where=self.text)
        return Stored(pack_bits(codes, self.bits), scales, whole=whole)

    def unpack(self, stored: Stored, columns: int) -> tuple[Tensor, Grid]:
        assert stored.whole is not None
        return unpack_bits(stored.codes, self.bits, columns), Grid(_product(stored.scales, stored.whole))

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {
            "codes": ((*shape[:-1], -(-shape[-1] // 2)), torch.uint8),
            "scales": (self.tiled(shape), torch.float8_e4m3fn),
            "whole": (shape[:-2], torch.float32),
        }


def _split(scale: Tensor) -> tuple[Tensor, Tensor]:
    """scale [..., N, G] -> its nearest scales [..., N, G] float8_e4m3fn and whole [...] float32."""
    bits = (scale.to(torch.float32).amax((-2, -1)) / LARGEST).view(torch.int32) + (1 << SPARE >> 1)
    whole = (bits >> SPARE << SPARE).view(torch.float32).clamp(min=SMALLEST)
    return (scale / whole[..., None, None]).clamp(LEAST, LARGEST).to(torch.float8_e4m3fn), whole


def _product(scales: Tensor, whole: Tensor) -> Tensor:
    return scales.to(torch.float32) * whole[..., None, None]
