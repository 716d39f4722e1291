"""Integers of 2, 4 and 8 bits: codes 0 to 2^bits - 1 around a zero point. The formats of them differ in nothing but bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mocomp.errors import Usage
from mocomp.quant.formats import Format, Grid, Stored, pack_bits, unpack_bits

SMALLEST = 2.0**-100
"""What a scale is at least, so that rows of zeros and denormals divide well."""
BLOCKS = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Integer(Format):
    """w = (code - zero) * scale, where zero is 2^(bits - 1) or, of asymmetric formats, a code of the tile's own.

    Zero points are packed as codes are, each row of them filled up to a whole byte: the layout of ONNX Runtime's QMoE and
    MatMulNBits, and of GPTQ but for the direction of packing. Scales are float32.
    """

    symmetric: bool = True

    @property
    def text(self) -> str:
        return super().text + ("" if self.symmetric else ":asym")

    @classmethod
    def of(cls, arguments: list[str]) -> Integer:
        symmetric = "asym" not in arguments
        sizes = [argument for argument in arguments if argument != "asym"]
        if len(sizes) > 1 or not all(size in map(str, BLOCKS) for size in sizes):
            raise Usage(
                f"{':'.join([cls.name, *arguments])}", fix=f"Blocks are of {', '.join(map(str, BLOCKS))}: {cls.name}:32"
            )
        return cls(int(sizes[0]) if sizes else 0, symmetric)

    @property
    def largest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def fit(self, w: Tensor) -> Grid:
        """Symmetric: the largest of a tile is half of all steps away. Asymmetric: from its least to its largest, and 0 is
        among the values, as it has to be where rows are filled up."""
        cut = self.tiles(w)
        if self.symmetric:
            return Grid((cut.abs().amax(-1) * (2 / self.largest)).clamp(min=SMALLEST))
        low, high = cut.amin(-1).clamp(max=0.0), cut.amax(-1).clamp(min=0.0)
        scale = ((high - low) / self.largest).clamp(min=SMALLEST)
        return self.storable(Grid(scale, -low / scale))

    def storable(self, grid: Grid) -> Grid:
        zero = None if grid.zero is None else grid.zero.round().clamp(0, self.largest)
        return Grid(grid.scale.to(torch.float32).clamp(min=SMALLEST), zero)

    def nearest(self, x: Tensor) -> Tensor:
        return x.round().clamp_(0, self.largest).to(torch.uint8)

    def value(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def pack(self, codes: Tensor, grid: Grid) -> Stored:
        zeros = None if grid.zero is None else pack_bits(grid.zero.to(torch.uint8), self.bits)
        return Stored(pack_bits(codes, self.bits), grid.scale, zeros)

    def unpack(self, stored: Stored, columns: int) -> tuple[Tensor, Grid]:
        codes = unpack_bits(stored.codes, self.bits, columns)
        tiles = stored.scales.shape[-1]
        zero = None if stored.zeros is None else unpack_bits(stored.zeros, self.bits, tiles).to(torch.float32)
        return codes, Grid(stored.scales, zero)

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        per = 8 // self.bits
        tiled = self.tiled(shape)
        made = {"codes": ((*shape[:-1], -(-shape[-1] // per)), torch.uint8), "scales": (tiled, torch.float32)}
        return made if self.symmetric else made | {"zeros": ((*tiled[:-1], -(-tiled[-1] // per)), torch.uint8)}
