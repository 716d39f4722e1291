"""The kinds of recipes that only rearrange. Rows are pushed down to the leaves, so stacking 128 experts of a layer needs the
memory of the experts in one buffer, not of the layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mocomp.errors import BadInput
from mocomp.weights.recipe import Need, Reader, Recipe, whole


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

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        if self.dim == 0 and start < stop:
            start, stop = self.start + start * self.step, self.start + (stop - 1) * self.step + 1
        yield self.source, start, stop


@dataclass(frozen=True)
class Concat(Recipe):
    """The parts one after the other along `dim`."""

    parts: tuple[Recipe, ...]
    dim: int

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.dim != 0:
            return torch.cat([part.rows(read, start, stop) for part in self.parts], self.dim)
        pieces = [part.rows(read, first, last) for part, first, last in self.needs(start, stop)]
        if not pieces:
            return _no_rows(self)
        return torch.cat(pieces) if len(pieces) != 1 else pieces[0]

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        if self.dim != 0:
            yield from ((part, start, stop) for part in self.parts)
            return
        offset = 0
        for part in self.parts:
            first, last = max(start - offset, 0), min(stop - offset, part.shape[0])
            offset += part.shape[0]
            if first < last:
                yield part, first, last


@dataclass(frozen=True)
class Stack(Recipe):
    """The parts along a new dimension `dim`."""

    parts: tuple[Recipe, ...]
    dim: int

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.dim != 0:
            return torch.stack([part.rows(read, start, stop) for part in self.parts], self.dim)
        return torch.stack([part.evaluate(read) for part in self.parts[start:stop]]) if start < stop else _no_rows(self)

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        if self.dim != 0:
            return ((part, start, stop) for part in self.parts)
        return (whole(part) for part in self.parts[start:stop])


@dataclass(frozen=True)
class Permute(Recipe):
    """The dimensions in another order."""

    source: Recipe
    order: tuple[int, ...]

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.order[:1] == (0,):
            return self.source.rows(read, start, stop).permute(self.order)
        return self.source.evaluate(read).permute(self.order)[start:stop]

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        yield (self.source, start, stop) if self.order[:1] == (0,) else whole(self.source)


@dataclass(frozen=True)
class Reshape(Recipe):
    """The same elements in the same order under another shape."""

    source: Recipe

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if not (self.shape and self.source.shape and self.nbytes):
            made = self.source.evaluate(read).reshape(self.shape)
            return made[start:stop] if self.shape else made
        _, first, last = next(self.needs(start, stop))
        row = math.prod(self.shape[1:])
        before = start * row - first * math.prod(self.source.shape[1:])
        elements = self.source.rows(read, first, last).reshape(-1)[before : before + (stop - start) * row]
        return elements.reshape(stop - start, *self.shape[1:])

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        if not (self.shape and self.source.shape and self.nbytes):
            yield whole(self.source)
            return
        row, of_source = math.prod(self.shape[1:]), math.prod(self.source.shape[1:])
        yield self.source, start * row // of_source, -(-stop * row // of_source)


@dataclass(frozen=True)
class Cast(Recipe):
    """The same numbers in another type."""

    source: Recipe

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        return self.source.rows(read, start, stop).to(self.dtype)

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        yield self.source, start, stop


@dataclass(frozen=True, eq=False)
class Apply(Recipe):
    """Any other torch function of whole tensors; the general case, which cannot work row by row."""

    function: Callable[[list[torch.Tensor]], torch.Tensor]
    sources: tuple[Recipe, ...]

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        made = self.function([source.evaluate(read) for source in self.sources])
        return made[start:stop] if self.shape else made


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
