"""Recipes that compute: row by row, so that they need no more memory than those that only rearrange."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mocomp.weights.recipes import Need, Reader, Recipe


@dataclass(frozen=True, eq=False)
class Elementwise(Recipe):
    """A function of tensors of one shape, entry by entry."""

    function: Callable[..., torch.Tensor]
    sources: tuple[Recipe, ...]

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        values = [source.rows(read, start, stop) for source in self.sources]
        return self.function(*values).to(self.dtype)

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        return ((source, start, stop) for source in self.sources)


@dataclass(frozen=True)
class Pick(Recipe):
    """The given indices of dimension `dim`, in their order; one may come more than once."""

    source: Recipe
    dim: int
    indices: tuple[int, ...]

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        if self.dim:
            return self.source.rows(read, start, stop).index_select(self.dim, torch.tensor(self.indices))
        runs = list(_runs(self.indices[start:stop]))
        if not runs:
            return torch.empty((0, *self.shape[1:]), dtype=self.dtype)
        return torch.cat([self.source.rows(read, first, last) for first, last in runs])

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        runs = [(start, stop)] if self.dim else _runs(self.indices[start:stop])
        return ((self.source, first, last) for first, last in runs)


@dataclass(frozen=True)
class Noise(Recipe):
    """source + share * deviation * normal noise; every row draws from its own seed, so any range of rows is the same."""

    source: Recipe
    deviation: float
    seed: int

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        # contiguous, so that sums of a row do not depend on how many rows lie around it
        value = self.source.rows(read, start, stop).to(torch.float32).contiguous()
        drawn = torch.stack([_normal(self.seed, row, value.shape[1:]) for row in range(start, stop)]) if stop > start else value
        spread = value.pow(2).mean(tuple(range(1, value.dim())), keepdim=True).sqrt() if value.dim() > 1 else value.abs()
        return (value + self.deviation * spread * drawn).to(self.dtype)

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        yield self.source, start, stop


@dataclass(frozen=True)
class Redrawn(Recipe):
    """The source with the given indices of `dim` drawn anew from a normal distribution of the source's mean and deviation.

    The statistics are of each row where columns are redrawn, and of the row itself where rows are (drop-upcycling,
    Nakamura et al. 2025, takes those of the whole weight; rows let a checkpoint stream).
    """

    source: Recipe
    dim: int
    indices: tuple[int, ...]
    seed: int

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        value = self.source.rows(read, start, stop).to(torch.float32).clone(memory_format=torch.contiguous_format)
        chosen = set(self.indices)
        columns = torch.tensor(self.indices, dtype=torch.long)
        for i, row in enumerate(range(start, stop)):
            if self.dim == 0 and row not in chosen:
                continue
            drawn = _normal(self.seed, row, value.shape[1:]) * value[i].std(correction=0) + value[i].mean()
            if self.dim == 0:
                value[i] = drawn
            else:
                value[i, columns] = drawn[columns]
        return value.to(self.dtype)

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        yield self.source, start, stop


def elementwise(function: Callable[..., torch.Tensor], *sources: Recipe) -> Recipe:
    """function(*sources), entry by entry, in the type of the first."""
    return Elementwise(sources[0].shape, sources[0].dtype, function, sources)


def scaled(source: Recipe, factor: float) -> Recipe:
    """source * factor."""
    return source if factor == 1.0 else elementwise(lambda x: x * factor, source)


def mean(sources: list[Recipe], weights: list[float] | None = None) -> Recipe:
    """The average of tensors of one shape, weighted by shares that sum to 1 if there are any."""
    shares = weights or [1 / len(sources)] * len(sources)
    if len(sources) == 1:
        return scaled(sources[0], shares[0])
    return elementwise(lambda *xs: sum(s * x.to(torch.float32) for s, x in zip(shares, xs, strict=True)), *sources)  # type: ignore[return-value, arg-type]


def pick(source: Recipe, dim: int, indices: list[int] | tuple[int, ...]) -> Recipe:
    """The given indices of a dimension, in their order."""
    shape = (*source.shape[:dim], len(indices), *source.shape[dim + 1 :])
    return Pick(shape, source.dtype, source, dim, tuple(int(i) for i in indices))


def noise(source: Recipe, deviation: float, seed: int) -> Recipe:
    """The source with normal noise of `deviation` times the root mean square of each row."""
    return source if deviation == 0.0 else Noise(source.shape, source.dtype, source, deviation, seed)


def redrawn(source: Recipe, dim: int, indices: list[int], seed: int) -> Recipe:
    """The source with some of its rows or columns drawn anew."""
    return Redrawn(source.shape, source.dtype, source, dim, tuple(indices), seed) if indices else source


def _normal(seed: int, row: int, shape: torch.Size) -> torch.Tensor:
    generator = torch.Generator().manual_seed((seed * 1_000_003 + row) % (1 << 63))
    return torch.randn(shape, generator=generator)


def _runs(indices: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Indices as ranges (first, last excluded) of neighbours, so that these are read at once."""
    first = last = None
    for i in indices:
        if last is not None and first is not None and i == last:
            last = i + 1
            continue
        if first is not None and last is not None:
            yield first, last
        first, last = i, i + 1
    if first is not None and last is not None:
        yield first, last
