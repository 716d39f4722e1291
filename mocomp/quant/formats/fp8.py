"""Floats of 8 bits (float8_e4m3fn), with a scale per row, per expert, or per square block as DeepSeek-V3 has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mocomp.errors import Usage
from mocomp.quant.formats import Format, Grid, Stored
from mocomp.quant.integer import SMALLEST

LARGEST = 448.0
TILES = {"": (1, 0), "tensor": (0, 0), "128x128": (128, 128)}
"""(rows, columns) that share a scale, 0 is all, by what users write after fp8."""


@dataclass(frozen=True)
class FP8(Format):
    """w = value(code) * scale; codes are the bits of float8_e4m3fn, scales float32 [..., N', G]. What is above 448 is cut."""

    name: ClassVar[str] = "fp8"
    rows: int = 1

    @property
    def text(self) -> str:
        tiles = {tile: text for text, tile in TILES.items()}[self.tile]
        return f"{self.name}:{tiles}" if tiles else self.name

    @property
    def tile(self) -> tuple[int, int]:
        return self.rows, self.block

    @classmethod
    def of(cls, arguments: list[str]) -> FP8:
        tiles = ":".join(arguments)
        if tiles not in TILES or arguments == [""]:
            raise Usage(f"{cls.name}:{tiles}", fix="Write fp8 (a scale per row), fp8:tensor or fp8:128x128")
        rows, columns = TILES[tiles]
        return cls(columns, rows)

    def fit(self, w: Tensor) -> Grid:
        return self.storable(Grid(self.tiles(w).abs().amax(-1) / LARGEST))

    def storable(self, grid: Grid) -> Grid:
        return Grid(grid.scale.to(torch.float32).clamp(min=SMALLEST))

    def nearest(self, x: Tensor) -> Tensor:
        return x.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)

    def value(self, codes: Tensor) -> Tensor:
        return codes.view(torch.float8_e4m3fn).to(torch.float32)

    def pack(self, codes: Tensor, grid: Grid) -> Stored:
        return Stored(codes.view(torch.float8_e4m3fn), grid.scale)

    def unpack(self, stored: Stored, columns: int) -> tuple[Tensor, Grid]:
        return stored.codes.view(torch.uint8), Grid(stored.scales)

    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        return {"codes": (shape, torch.float8_e4m3fn), "scales": (self.tiled(shape), torch.float32)}
