"""Recipes: what a weight is, as a small expression over the tensors of a checkpoint.

A recipe is evaluated when its tensor is written, a range of rows at a time, and forgotten. Rows are pushed down
to the leaves, so stacking 128 experts of a layer needs the memory of the experts in one buffer, not of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mocomp.errors import BadInput

Reader = Callable[[str, int, int], torch.Tensor]
"""(name of a tensor, first row, last row excluded) -> those rows of it."""


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

    def leaves(self) -> Iterator[Tensor]:
        """The tensors of the checkpoint that this recipe reads."""
        raise NotImplementedError

    def evaluate(self, read: Reader) -> torch.Tensor:
        """The whole tensor, in memory."""
        return self.rows(read, 0, self.shape[0]) if self.shape else self.rows(read, 0, 1)

    def chunks(self, read: Reader, limit: int) -> Iterator[torch.Tensor]:
        """The tensor in pieces of whole rows, each of at most `limit` bytes where one row fits in it."""
        if not self.shape or math.prod(self.shape) == 0:
            yield self.evaluate(read)
            return
        per_row = max(self.nbytes // self.shape[0], 1)
        step = max(limit // per_row, 1)
        for start in range(0, self.shape[0], step):
            yield self.rows(read, start, min(start + step, self.shape[0]))


@dataclass(frozen=True)
class Tensor(Recipe):
    """A tensor of the checkpoint, by its name there."""

    name: str

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        return read(self.name, start, stop)

    def leaves(self) -> Iterator[Tensor]:
        yield self


@dataclass(frozen=True, eq=False)
class Literal(Recipe):
    """A small tensor that no checkpoint holds, such as the frequencies of a rotary embedding."""

    value: torch.Tensor

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        return self.value[start:stop] if self.shape else self.value

    def leaves(self) -> Iterator[Tensor]:
        yield from ()


@dataclass(frozen=True)
class Slice(Recipe):
    """Every `step`-th index from `start` to `stop` of dimension `dim`."""

    source: Recipe
    dim: int
    start: int
    stop: int
    step: int

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.dim == 0:
            if start == stop:
                return _no_rows(self)
            first, last = self.start + start * self.step, self.start + (stop - 1) * self.step + 1
            return self.source.rows(read, first, last)[:: self.step]
        index = (slice(None),) * self.dim + (slice(self.start, self.stop, self.step),)
        return self.source.rows(read, start, stop)[index]

    def leaves(self) -> Iterator[Tensor]:
        return self.source.leaves()


@dataclass(frozen=True)
class Concat(Recipe):
    """The parts one after the other along `dim`."""

    parts: tuple[Recipe, ...]
    dim: int

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.dim != 0:
            return torch.cat([part.rows(read, start, stop) for part in self.parts], self.dim)
        pieces, offset = [], 0
        for part in self.parts:
            first, last = max(start - offset, 0), min(stop - offset, part.shape[0])
            offset += part.shape[0]
            if first < last:
                pieces.append(part.rows(read, first, last))
        if not pieces:
            return _no_rows(self)
        return torch.cat(pieces) if len(pieces) != 1 else pieces[0]

    def leaves(self) -> Iterator[Tensor]:
        for part in self.parts:
            yield from part.leaves()


@dataclass(frozen=True)
class Stack(Recipe):
    """The parts along a new dimension `dim`."""

    parts: tuple[Recipe, ...]
    dim: int

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.dim != 0:
            return torch.stack([part.rows(read, start, stop) for part in self.parts], self.dim)
        return torch.stack([part.evaluate(read) for part in self.parts[start:stop]]) if start < stop else _no_rows(self)

    def leaves(self) -> Iterator[Tensor]:
        for part in self.parts:
            yield from part.leaves()


@dataclass(frozen=True)
class Permute(Recipe):
    """The dimensions in another order."""

    source: Recipe
    order: tuple[int, ...]

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.order[:1] == (0,):
            return self.source.rows(read, start, stop).permute(self.order)
        return self.source.evaluate(read).permute(self.order)[start:stop]

    def leaves(self) -> Iterator[Tensor]:
        return self.source.leaves()


@dataclass(frozen=True)
class Reshape(Recipe):
    """The same elements in the same order under another shape."""

    source: Recipe

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.shape and self.source.shape[:1] == self.shape[:1]:
            return self.source.rows(read, start, stop).reshape(stop - start, *self.shape[1:])
        whole = self.source.evaluate(read).reshape(self.shape)
        return whole[start:stop] if self.shape else whole

    def leaves(self) -> Iterator[Tensor]:
        return self.source.leaves()


@dataclass(frozen=True)
class Cast(Recipe):
    """The same numbers in another type."""

    source: Recipe

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        return self.source.rows(read, start, stop).to(self.dtype)

    def leaves(self) -> Iterator[Tensor]:
        return self.source.leaves()


@dataclass(frozen=True, eq=False)
class Apply(Recipe):
    """Any other torch function of whole tensors; the general case, which cannot work row by row."""

    function: Callable[[list[torch.Tensor]], torch.Tensor]
    sources: tuple[Recipe, ...]

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        whole = self.function([source.evaluate(read) for source in self.sources])
        return whole[start:stop] if self.shape else whole

    def leaves(self) -> Iterator[Tensor]:
        for source in self.sources:
            yield from source.leaves()


def _no_rows(recipe: Recipe) -> torch.Tensor:
    return torch.empty((0, *recipe.shape[1:]), dtype=recipe.dtype)


def slice_of(source: Recipe, dim: int, start: int, stop: int, step: int = 1) -> Recipe:
    """A slice; of a concatenation cut at its own seams, the part itself, so that nothing is read in vain."""
    length = source.shape[dim]
    start, stop = (min(max(end + length if end < 0 else end, 0), length) for end in (start, stop))
    if (start, stop, step) == (0, length, 1):
        return source
    if isinstance(source, Concat) and source.dim == dim and step == 1:
        offset = 0
        for part in source.parts:
            if offset <= start and stop <= offset + part.shape[dim]:
                return slice_of(part, dim, start - offset, stop - offset)
            offset += part.shape[dim]
    size = max(-(-(stop - start) // step), 0)
    shape = (*source.shape[:dim], size, *source.shape[dim + 1 :])
    return Slice(shape, source.dtype, source, dim, start, stop, step)


def concat(parts: list[Recipe], dim: int) -> Recipe:
    """The parts one after the other along `dim`; they share a type."""
    first = parts[0]
    if len(parts) == 1:
        return first
    _refuse_unequal(parts, without=dim)
    size = sum(part.shape[dim] for part in parts)
    return Concat((*first.shape[:dim], size, *first.shape[dim + 1 :]), first.dtype, tuple(parts), dim)


def stack(parts: list[Recipe], dim: int) -> Recipe:
    """The parts along a new dimension `dim`."""
    first = parts[0]
    _refuse_unequal(parts)
    return Stack((*first.shape[:dim], len(parts), *first.shape[dim:]), first.dtype, tuple(parts), dim)


def _refuse_unequal(parts: list[Recipe], without: int | None = None) -> None:
    """Raises BadInput when the shapes differ in a dimension besides `without`."""
    for part in parts[1:]:
        pairs = zip(parts[0].shape, part.shape, strict=False)
        if len(part.shape) != len(parts[0].shape) or any(a != b for d, (a, b) in enumerate(pairs) if d != without):
            name, other = (next((leaf.name for leaf in p.leaves()), "a tensor") for p in (part, parts[0]))
            raise BadInput(f"{name} is {list(part.shape)}, and {other}, which it belongs with, is {list(parts[0].shape)}")


def permute(source: Recipe, order: tuple[int, ...]) -> Recipe:
    """The dimensions in another order; two permutations become one, and none when they cancel."""
    if isinstance(source, Permute):
        order, source = tuple(source.order[d] for d in order), source.source
    if order == tuple(range(len(order))):
        return source
    return Permute(tuple(source.shape[d] for d in order), source.dtype, source, order)


def reshape(source: Recipe, shape: tuple[int, ...]) -> Recipe:
    """The same elements under another shape."""
    return source if shape == source.shape else Reshape(shape, source.dtype, source)


def cast(source: Recipe, dtype: torch.dtype) -> Recipe:
    """The same numbers in another type."""
    return source if dtype == source.dtype else Cast(source.shape, dtype, source)


def literal(value: torch.Tensor) -> Recipe:
    """A tensor that no checkpoint holds, kept in memory."""
    value = value.detach().contiguous()
    return Literal(tuple(value.shape), value.dtype, value)
