"""A recipe: what a weight is, as a small expression over the tensors of a checkpoint.

It is evaluated when its tensor is written, a range of rows at a time, and forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from mocomp.weights.recipes import Tensor

Reader = Callable[[str, int, int], torch.Tensor]
"""(name of a tensor, first row, last row excluded) -> those rows of it."""
Need = tuple["Recipe", int, int]
"""(recipe, first row, last row excluded)."""
REPEATED = 1.5
"""How many times the work of all rows at once it may be to make them in several ranges."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """An expression with a known shape and dtype; `rows` evaluates a range of its first dimension."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        raise NotImplementedError

    def children(self) -> Iterator[Recipe]:
        """The recipes that this one is made of."""
        for field in fields(self):
            value = getattr(self, field.name)
            every = value if isinstance(value, tuple) else value.values() if isinstance(value, Mapping) else (value,)
            yield from (child for child in every if isinstance(child, Recipe))

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        """What `rows` evaluates for this range: all of every child, unless a kind of recipe knows better."""
        return (whole(child) for child in self.children())

    def cost(self, start: int, stop: int) -> int:
        """Bytes of these rows and of all that they are made of: the memory they take at most, and a measure of the work."""
        own = self.nbytes * (stop - start) // max(self.shape[0], 1) if self.shape else self.nbytes
        return own + sum(child.cost(first, last) for child, first, last in self.needs(start, stop))

    def leaves(self) -> Iterator[Tensor]:
        """The tensors of the checkpoint that this recipe reads."""
        for child in self.children():
            yield from child.leaves()

    def evaluate(self, read: Reader) -> torch.Tensor:
        """The whole tensor, in memory."""
        return self.rows(read, 0, self.shape[0]) if self.shape else self.rows(read, 0, 1)

    def ranges(self, limit: int, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
        """Rows start..stop, or all, in ranges of at most `limit` bytes where one row fits in that; as one range where to make
        them apart is more work, since the same whole tensors are needed for each."""
        _, _, last = whole(self)
        stop = last if stop is None else stop
        if self.nbytes == 0 or not self.shape:
            return [(start, stop)]
        step = max(limit * self.shape[0] // self.nbytes, 1)
        found = [(first, min(first + step, stop)) for first in range(start, stop, step)]
        apart = sum(self.cost(*rows) for rows in found) if len(found) > 1 else 0
        return found if apart <= REPEATED * self.cost(start, stop) else [(start, stop)]

    def chunks(self, read: Reader, limit: int, start: int = 0, stop: int | None = None) -> Iterator[torch.Tensor]:
        """Rows start..stop, or all, in contiguous pieces of whole rows, each of at most `limit` bytes where one row fits."""
        for first, last in self.ranges(limit, start, stop):
            made = self.rows(read, first, last)
            step = max(limit * len(made) // made.nbytes, 1) if made.shape and made.nbytes else 1
            yield from (piece.contiguous() for piece in (made.split(step) if made.shape else (made,)))


def whole(recipe: Recipe) -> Need:
    """All of a recipe, as a need."""
    return recipe, 0, recipe.shape[0] if recipe.shape else 1
