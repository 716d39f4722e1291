"""Grids of least error: the scales, and zero points where there are any, that rounding to the nearest does best with.

Codes and grid depend on each other, so they take turns (Lloyd 1982): round on a grid, then solve for the grid that suits
these codes best. That finds the nearest minimum only, hence several starts from large scales to small ones, which clip the
largest weights. Each tile keeps the best grid it has seen, plain rounding's among them.
Dimension letters: E experts, N rows, K columns, N' and G tiles along them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mocomp.quant.formats import Format, Grid

STARTS = (1.0, 1.1, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Scales to start from, as shares of what the largest weight of a tile asks for."""
ROUNDS = 3
NARROWEST, WIDEST = 0.1, 2.0
"""Bounds of a solved scale, as shares of the same; beyond them divisions might overflow."""
TINY = 1e-30

Weigh = Callable[[Tensor], Tensor]
"""Errors of tiles [E, N', G, rows * columns] -> the same times their importance; loss = sum(error * weigh(error))."""
Spare = Callable[[Tensor], Tensor]
"""Errors in units of the scale -> the part of each that the grid shall not follow."""


def refined(w: Tensor, format: Format, importance: Tensor | None = None, spare: Spare | None = None) -> Grid:
    """The storable grid for w [E, N, K] float32 with the least error seen, never worse than that of `format.fit`.

    `importance` [E, K] weighs squared errors by column, [E, K, K] also their products within a row of a tile.
    """
    weigh = _weigh(w, format, importance)
    cut, fit = format.tiles(w), format.fit(w)
    best, least = fit, _loss(cut, fit, format, weigh)
    plain = least
    for start in STARTS:
        grid = format.storable(Grid(fit.scale * start, fit.zero))
        for turn in range(ROUNDS):
            if turn:
                grid = _solved(cut, grid, fit, format, weigh, spare)
            loss = _loss(cut, grid, format, weigh)
            best, least = _where(loss < least, grid, best), torch.minimum(loss, least)
    together = format.storable(best)
    if torch.equal(together.scale, best.scale):
        return together
    # Scales that are stored relative to the largest of them move when they come from different grids.
    worse = _loss(cut, together, format, weigh).sum((-2, -1)) > plain.sum((-2, -1))
    return _where(worse[:, None, None], fit, together)


def _solved(cut: Tensor, grid: Grid, fit: Grid, format: Format, weigh: Weigh, spare: Spare | None) -> Grid:
    """The grid that weighted least squares gives for the codes that `grid` rounds to."""
    numbers, zero = _numbers(cut, grid, format), _zero(grid, format)
    steps = numbers - zero
    if spare is not None:
        scale = grid.scale[..., None]
        cut = cut - spare(cut / scale - steps) * scale
    weighed = weigh(steps)
    across, along = (weighed * cut).sum(-1), (weighed * steps).sum(-1)
    solved = (across / along.clamp(min=TINY)).clamp(fit.scale * NARROWEST, fit.scale * WIDEST)
    scale = torch.where((across > 0) & (along > 0), solved, grid.scale)
    if grid.zero is None:
        return format.storable(Grid(scale))
    weights = weigh(torch.ones_like(cut))
    offset = ((numbers - cut / scale[..., None]) * weights).sum(-1)
    total = weights.sum(-1)
    return format.storable(Grid(scale, torch.where(total > 0, offset / total.clamp(min=TINY), grid.zero)))


def _loss(cut: Tensor, grid: Grid, format: Format, weigh: Weigh) -> Tensor:
    """[E, N', G], the weighed squared error of each tile."""
    error = cut - (_numbers(cut, grid, format) - _zero(grid, format)) * grid.scale[..., None]
    return (weigh(error) * error).sum(-1)


def _numbers(cut: Tensor, grid: Grid, format: Format) -> Tensor:
    return format.value(format.nearest(cut / grid.scale[..., None] + _zero(grid, format)))


def _zero(grid: Grid, format: Format) -> Tensor | float:
    return format.centre if grid.zero is None else grid.zero[..., None]


def _where(chosen: Tensor, one: Grid, other: Grid) -> Grid:
    zero = None if one.zero is None or other.zero is None else torch.where(chosen, one.zero, other.zero)
    return Grid(torch.where(chosen, one.scale, other.scale), zero)


def _weigh(w: Tensor, format: Format, importance: Tensor | None) -> Weigh:
    """How errors of the tiles of w count; of those that fill up the last tiles, as little as makes no difference."""
    if importance is None:
        return lambda error: error
    if importance.ndim == 2:
        weights = format.tiles(importance[:, None].expand(w.shape))
        return lambda error: error * weights
    blocks = _blocks(importance, format.tile[1] or w.shape[-1])
    rows = format.tile[0] or w.shape[-2]
    return lambda error: torch.einsum("engrc,egcd->engrd", error.unflatten(-1, (rows, -1)), blocks).flatten(-2)


def _blocks(second: Tensor, columns: int) -> Tensor:
    """[E, K, K] -> [E, G, columns, columns], the blocks on the diagonal, filled up with zeros."""
    filled = torch.nn.functional.pad(second, (0, -second.shape[-1] % columns) * 2)
    cut = filled.unflatten(-1, (-1, columns)).unflatten(-3, (-1, columns))  # [E, G, columns, G, columns]
    return cut.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
