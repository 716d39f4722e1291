"""Formats: each file is one way to store a weight in few bits.

To add one, add a file with a frozen dataclass derived from `Format`. A weight w [..., N, K] (rows are outputs, as in
`nn.Linear`) is cut into tiles; a tile has one scale, and maybe one zero point, and every weight in it one code:

    w = (value(code) - zero) * scale

Algorithms choose scales, zero points and codes by `fit`, `nearest` and `value`, and know no format; `pack` and `unpack` go
between those numbers and the tensors on disk. Dimension letters: E experts, N rows, K columns, G tiles along K.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mocomp.errors import Usage
from mocomp.registry import discover


@dataclass
class Grid:
    """The numbers that a tile's codes stand on: scale [..., N', G] float32, zero [..., N', G] float32 in units of codes, or
    None where the format's own zero (`Format.centre`) holds for all. N' is the number of tiles along N."""

    scale: Tensor
    zero: Tensor | None = None


@dataclass
class Stored:
    """The tensors of a weight on disk: codes [..., N, bytes of a row] uint8, scales, zeros, and a scale of all scales
    [...] float32 for formats that have one (nvfp4)."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None
    whole: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Those that there are, by name."""
        return {name: tensor for name in PARTS if (tensor := getattr(self, name)) is not None}


PARTS = ("codes", "scales", "zeros", "whole")


@dataclass(frozen=True)
class Format(ABC):
    """A way to store weights. `block` columns share a scale, 0 is all of a row; most formats fix it or have a default."""

    name: ClassVar[str] = ""
    bits: ClassVar[int] = 8
    centre: ClassVar[float] = 0.0
    block: int = 0

    @property
    def text(self) -> str:
        """As users write it, and `parse` reads it: int4:32."""
        return f"{self.name}:{self.block}" if self.block else self.name

    @property
    def tile(self) -> tuple[int, int]:
        """(rows, columns) of a tile; 0 is all there are."""
        return 1, self.block

    @classmethod
    @abstractmethod
    def of(cls, arguments: list[str]) -> Format:
        """From what stands after the name, such as ["32", "asym"]. Raises Usage."""

    @abstractmethod
    def fit(self, w: Tensor) -> Grid:
        """The grid of plain rounding for w [..., N, K] float32: what the largest of each tile asks for, as it can be stored."""

    @abstractmethod
    def storable(self, grid: Grid) -> Grid:
        """The grid whose numbers are the nearest that can be stored; `pack` then keeps it exactly."""

    @abstractmethod
    def nearest(self, x: Tensor) -> Tensor:
        """x, weights in units of scale plus zero -> the code of the nearest value, uint8, of the same shape."""

    @abstractmethod
    def value(self, codes: Tensor) -> Tensor:
        """The float32 number of each code."""

    @abstractmethod
    def pack(self, codes: Tensor, grid: Grid) -> Stored:
        """codes [..., N, K] and their storable grid as tensors on disk."""

    @abstractmethod
    def unpack(self, stored: Stored, columns: int) -> tuple[Tensor, Grid]:
        """What was packed; `columns` is K."""

    @abstractmethod
    def shapes(self, shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """(shape, type) of each tensor on disk for a weight of `shape`, by its name in `Stored`."""

    def encode(self, w: Tensor, grid: Grid) -> Tensor:
        """w [..., N, K] -> codes [..., N, K] by rounding to the nearest."""
        return self.nearest((w / self.spread(grid.scale, w.shape)).add_(self._zero(grid, w.shape)))

    def decode(self, codes: Tensor, grid: Grid) -> Tensor:
        """codes [..., N, K] -> w [..., N, K] float32."""
        return (self.value(codes) - self._zero(grid, codes.shape)) * self.spread(grid.scale, codes.shape)

    def dequantise(self, stored: Stored, columns: int) -> Tensor:
        """The weight [..., N, K] float32 that `stored` stands for."""
        return self.decode(*self.unpack(stored, columns))

    def spread(self, per_tile: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """[..., N', G] -> [..., N, K]: each tile's number at each of its weights, or a dimension of 1 to broadcast."""
        rows, columns = self.tile
        if rows > 1:
            per_tile = per_tile.repeat_interleave(rows, -2)[..., : shape[-2], :]
        if columns and per_tile.shape[-1] > 1:
            per_tile = per_tile.repeat_interleave(columns, -1)[..., : shape[-1]]
        return per_tile

    def tiles(self, w: Tensor, fill: float = 0.0) -> Tensor:
        """w [..., N, K] -> [..., N', G, rows * columns], the last tiles filled up where blocks do not divide the sizes."""
        rows, columns = self._tile_of(w.shape)
        n, k = w.shape[-2:]
        if n % rows or k % columns:
            w = torch.nn.functional.pad(w, (0, -k % columns, 0, -n % rows), value=fill)
        cut = w.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))  # [..., N', rows, G, columns]
        return cut.transpose(-3, -2).flatten(-2)

    def tiled(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, ...]:
        """[..., N, K] -> [..., N', G]."""
        rows, columns = self._tile_of(shape)
        return (*shape[:-2], -(-shape[-2] // rows), -(-shape[-1] // columns))

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes on disk of a weight of that shape."""
        return sum(math.prod(size) * dtype.itemsize for size, dtype in self.shapes(shape).values())

    def _tile_of(self, shape: tuple[int, ...] | torch.Size) -> tuple[int, int]:
        rows, columns = self.tile
        return rows or shape[-2], columns or shape[-1]

    def _zero(self, grid: Grid, shape: torch.Size) -> Tensor | float:
        return self.centre if grid.zero is None else self.spread(grid.zero, shape)


def parse(text: str) -> Format:
    """`int4:32`, `int4:32:asym`, `int8`, `fp8:128x128`, `nvfp4` -> a format. Raises Usage for what is none."""
    name, *arguments = text.split(":")
    known = discover("mocomp.quant.formats", "Format")
    if name not in known:
        raise Usage(f"no format {name!r}; they are {', '.join(known)}")
    return known[name].of(arguments)  # type: ignore[attr-defined]


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """codes [..., K] below 2^bits -> [..., ceil(K * bits / 8)] uint8, the first code in the lowest bits."""
    if bits == 8:
        return codes
    per = 8 // bits
    if codes.shape[-1] % per:
        codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % per))
    parts = codes.unflatten(-1, (-1, per))
    packed = parts[..., 0].clone()
    for i in range(1, per):
        packed |= parts[..., i] << (bits * i)
    return packed


def unpack_bits(packed: Tensor, bits: int, columns: int) -> Tensor:
    """What `pack_bits` packed; `columns` is K."""
    if bits == 8:
        return packed
    mask = (1 << bits) - 1
    parts = torch.stack([(packed >> (bits * i)) & mask for i in range(8 // bits)], -1)
    return parts.flatten(-2)[..., :columns]
