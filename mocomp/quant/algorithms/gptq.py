"""GPTQ (Frantar et al. 2023): columns are rounded one after another, and those to come make up for the error so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from mocomp.errors import Usage
from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.chunks import chunks, joined
from mocomp.quant.formats import Format, Grid
from mocomp.quant.moments import DAMPING, columns, factor
from mocomp.quant.refining import refined

BLOCK = 32
"""Columns that errors reach at once; those after them are told by one matrix product when their turn comes."""

TOGETHER = 6 << 20
"""Weights of the experts that take each step together; more of them only leave the processor's cache sooner."""


@dataclass(frozen=True)
class GPTQ(Algorithm):
    """In the form of LDLQ (Chee et al. 2023), which gives the same codes without inverting a matrix.

    With second = U D U^T, where U is lower triangular with a diagonal of 1, the squared error of the output is a sum over the
    columns k of (error U)[k]^2 D[k], and errors of the columns after k have a part in it. So columns are taken from the last
    to the first, each rounded to what makes its square least:

        round(w[k] + sum over j > k of error[j] * U[j, k])

    Experts take each step together. Scales are searched beforehand, for the weights as they are: then the columns with
    the largest inputs can go first (`order`), and tiles may have any shape. A column that no token uses neither gets nor gives
    any error, and is rounded as it is.
    """

    name: ClassVar[str] = "gptq"
    calibrated: ClassVar[bool] = True
    damping: float = DAMPING
    order: bool = True

    def quantise(self, w: Tensor, format: Format, moments: Moments | None) -> tuple[Tensor, Grid]:
        """Raises Usage without moments, and BadInput where they are no numbers."""
        if moments is None:
            raise Usage("gptq needs calibration data")
        importance = columns(moments.second, self.damping)
        grid = joined([refined(w[part], format, importance[part]) for part in chunks(w)])
        return self.codes(w, format, grid, moments.second), grid

    def codes(self, w: Tensor, format: Format, grid: Grid, second: Tensor) -> Tensor:
        """w [E, N, K], second [E, K, K] -> codes [E, N, K] uint8 on a grid that is given."""
        order = self._order(second)
        codes = w.new_empty(w.shape, dtype=torch.uint8)
        for part in chunks(w, TOGETHER):
            tiles = _Tiles(format, Grid(grid.scale[part], None if grid.zero is None else grid.zero[part]), w.shape, order[part])
            codes[part] = _together(w[part], tiles, second[part], order[part], self.damping)
        return codes

    def _order(self, second: Tensor) -> Tensor:
        """[E, K], the last of which goes first."""
        sizes = second.diagonal(dim1=-2, dim2=-1)
        if self.order:
            return sizes.argsort(dim=-1, stable=True)
        return torch.arange(sizes.shape[-1], device=sizes.device).flip(0).expand_as(sizes)


class _Tiles:
    """The scales and zero points of the columns in their order."""

    def __init__(self, format: Format, grid: Grid, shape: torch.Size, order: Tensor):
        self.format = format
        self.tiles = order // (format.tile[1] or shape[-1])
        self.experts = torch.arange(len(order), device=order.device)
        self.scale = self._by_column(grid.scale, shape[-2])
        self.zero = None if grid.zero is None else self._by_column(grid.zero, shape[-2])

    def round(self, wanted: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """wanted [E, N], column k -> its codes and what they stand for."""
        scale = self.scale[self.experts, self.tiles[:, k]]
        zero = self.format.centre if self.zero is None else self.zero[self.experts, self.tiles[:, k]]
        codes = self.format.nearest(wanted / scale + zero)
        return codes, (self.format.value(codes) - zero) * scale

    def _by_column(self, per_tile: Tensor, n: int) -> Tensor:
        """[E, N', G] -> [E, G, N], or [E, G, 1] where all rows share a tile."""
        rows = self.format.tile[0]
        return (per_tile.repeat_interleave(rows, -2)[:, :n] if rows > 1 else per_tile).mT.contiguous()


def _together(w: Tensor, tiles: _Tiles, second: Tensor, order: Tensor, damping: float) -> Tensor:
    """w [E, N, K] -> codes [E, N, K]."""
    experts = torch.arange(len(w), device=w.device)[:, None]
    rows = second[experts, order]
    lower = factor(rows.gather(2, order[:, None].expand_as(rows)), damping)
    return _one_by_one(w.mT[experts, order], lower, tiles)[experts, order.argsort(-1)].mT


def _one_by_one(w: Tensor, lower: Tensor, tiles: _Tiles) -> Tensor:
    """Columns w [E, K, N] in their order, lower [E, K, K] -> codes [E, K, N]."""
    codes, errors = w.new_empty(w.shape, dtype=torch.uint8), torch.empty_like(w)
    for end in range(w.shape[1], 0, -BLOCK):
        start = max(end - BLOCK, 0)
        wanted = torch.baddbmm(w[:, start:end], lower[:, end:, start:end].mT, errors[:, end:])
        for k in reversed(range(start, end)):
            codes[:, k], values = tiles.round(wanted[:, k - start], k)
            error = torch.sub(w[:, k], values, out=errors[:, k])
            wanted[:, : k - start].addcmul_(lower[:, k, start:k, None], error[:, None])
    return codes
