"""MXFP4 of the OCP Microscaling specification 1.0: floats of 4 bits, 32 of which share a power of two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mocomp.quant.e2m1 import E2M1
from mocomp.quant.formats import Grid, Stored, pack_bits, unpack_bits
from mocomp.quant.integer import SMALLEST

BIAS = 127
"""Code c of float8_e8m0fnu is 2^(c - 127); 255 is not a number."""


@dataclass(frozen=True)
class MXFP4(E2M1):
    """Scales float8_e8m0fnu [..., N, K/32], the layout of gpt-oss and of ONNX Runtime's `quant_type='fp4'`."""

    name: ClassVar[str] = "mxfp4"
    block: int = 32

    def candidates(self, top: Tensor) -> tuple[Tensor, Tensor]:
        """The specification's 2^(floor(log2 top) - 2), which cuts what is above 6 of it but keeps weights that are MXFP4
        already as they are, and the power above it, which cuts nothing."""
        _, exponent = torch.frexp(top.clamp(min=SMALLEST))  # top is in [2^(exponent - 1), 2^exponent)
        return _power(exponent - 3), _power(exponent - 2)

    def storable(self, grid: Grid) -> Grid:
        """The power of two nearest by ratio."""
        mantissa, exponent = torch.frexp(grid.scale.to(torch.float32))
        return Grid(_power(exponent - (mantissa < 0.5**0.5).to(exponent.dtype)))

    def pack(self, codes: Tensor, grid: Grid) -> Stored:
        return Stored(pack_bits(codes, self.bits), grid.scale.to(torch.float8_e8m0fnu))

    def unpack(self, stored: Stored, columns: int) -> tuple[Tensor, Grid]:
        return unpack_bits(stored.codes, self.bits, columns), Grid(stored.scales.to(torch.float32))

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {
            "codes": ((*shape[:-1], -(-shape[-1] // 2)), torch.uint8),
            "scales": (self.tiled(shape), torch.float8_e8m0fnu),
        }


def _power(exponent: Tensor) -> Tensor:
    """2^exponent float32, within what the type of scales holds; through its bits, as `exp2` need not be exact."""
    return (exponent + BIAS).clamp(0, 2 * BIAS).to(torch.uint8).view(torch.float8_e8m0fnu).to(torch.float32)
