"""Weights that are quantised by themselves, looking at no data, in parts that need nothing of each other."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from mocomp.quant.algorithms import Algorithm
from mocomp.quant.formats import Format
from mocomp.quant.weight import QuantisedWeight
from mocomp.weights.parts import PART, Place, Span
from mocomp.weights.recipes import Reader, Recipe, Tensor
from mocomp.weights.scratch import Scratch

CHUNK = 8 << 20
"""Bytes of float weights that are quantised together where nothing else asks for more."""
WORKING = 8
"""Bytes that are held for each weight of a chunk while it is quantised: itself in float32, its code, what is packed."""


@dataclass(frozen=True, eq=False)
class Quantised:
    """Rows start..stop of a weight, quantised `chunk` bytes at a time; `spans` are for its stored tensors, in their order."""

    recipe: Recipe
    read: Reader
    weight: QuantisedWeight
    algorithm: Algorithm
    start: int
    stop: int
    chunk: int
    spans: tuple[Span, ...]

    @property
    def amount(self) -> int:
        return self.recipe.nbytes * (self.stop - self.start) // self.recipe.shape[0]

    @property
    def nbytes(self) -> int:
        ranges = self.recipe.ranges(self.chunk, self.start, self.stop)
        working = WORKING * min(self.chunk, self.amount) // self.recipe.dtype.itemsize
        return max(self.recipe.cost(*rows) for rows in ranges) + working

    def __call__(self) -> tuple[str, ...]:
        form = self.weight.form
        with ExitStack() as stack:
            places = [stack.enter_context(Place(span)) for span in self.spans]
            for piece in self.recipe.chunks(self.read, self.chunk, self.start, self.stop):
                w = piece.float() if piece.dim() == 3 else piece.float()[None]
                stored = form.pack(*self.algorithm.quantise(w, form, None)).tensors()
                for (name, promised), place in zip(self.weight.parts.items(), places, strict=True):
                    rows = stored[name]
                    place.write(rows if rows.dim() == len(promised.shape) else rows[0])
        return tuple(place.checksum for place in places)


def quantised(
    recipe: Recipe, read: Reader, weight: QuantisedWeight, algorithm: Algorithm, store: Scratch
) -> Iterator[Quantised]:
    """A weight in parts, to be found in `store` as `weight` promises."""
    together = _together(recipe, weight.form)
    for start, stop in [(0, recipe.shape[0])] if together else recipe.ranges(PART):
        spans = tuple(_span(store, promised, start, stop) for promised in weight.parts.values())
        chunk = recipe.nbytes if together else CHUNK
        yield Quantised(recipe, read, weight, algorithm, start, stop, chunk, spans)


def _span(store: Scratch, promised: Recipe, start: int, stop: int) -> Span:
    """Where what is stored of rows start..stop goes; of rows that are not parted, all of it."""
    assert isinstance(promised, Tensor)
    rows = promised.shape[0] if promised.shape else 1
    return store.span(promised, min(start, rows), min(stop, rows))


def _together(recipe: Recipe, form: Format) -> bool:
    """Whether rows of a weight cannot be parted: those of a linear layer that share a scale, or the scale of scales."""
    return len(recipe.shape) == 2 and (form.tile[0] != 1 or "whole" in form.shapes(recipe.shape))
