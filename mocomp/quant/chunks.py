"""Experts a few at a time, so few that what is computed of them stays in the processor's cache.

Dimension letters: E experts, N rows, K columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from mocomp.quant.formats import Format, Grid

CHUNK = 1 << 18
"""Weights at once, where an expert has no more."""


def chunks(w: Tensor, size: int = CHUNK) -> Iterator[slice]:
    """The experts of w [E, N, K]. Never a part of one: a format may store something that all its tiles share."""
    step = max(1, size // max(1, w[0].numel()))
    for start in range(0, len(w), step):
        yield slice(start, start + step)


def joined(grids: list[Grid]) -> Grid:
    """The grids of chunks as one."""
    zeros = [grid.zero for grid in grids if grid.zero is not None]
    return Grid(torch.cat([grid.scale for grid in grids]), torch.cat(zeros) if zeros else None)


def rounded(w: Tensor, format: Format, choose: Callable[[slice], Grid]) -> tuple[Tensor, Grid]:
    """w [E, N, K] -> codes [E, N, K] uint8, each the nearest on the grid that `choose` gives for a chunk, and the grid."""
    codes, grids = w.new_empty(w.shape, dtype=torch.uint8), []
    for part in chunks(w):
        grids.append(choose(part))
        codes[part] = format.encode(w[part], grids[-1])
    return codes, joined(grids)
