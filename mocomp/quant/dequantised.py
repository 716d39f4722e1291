"""A quantised weight as a recipe: the float weight that its parts stand for, and the way back to the parts.

Dimension letters: E experts, N rows, K columns, G tiles along K.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from mocomp.quant.formats import PARTS, Stored, parse
from mocomp.weights import recipes
from mocomp.weights.arithmetic import Pick, pick
from mocomp.weights.recipes import Cast, Concat, Need, Permute, Reader, Recipe, Reshape, Slice, Stack, whole


@dataclass(frozen=True, eq=False)
class Dequantised(Recipe):
    """A weight [N, K] or [E, N, K] float32 of a format (the text of it) from its parts, by their names in `Stored`."""

    format: str
    parts: Mapping[str, Recipe]

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        format = parse(self.format)
        rows, columns = self.shape[-2:]
        if len(self.shape) > 2:
            return format.dequantise(
                Stored(**{name: part.rows(read, start, stop) for name, part in self.parts.items()}), columns
            )
        tall = format.tile[0] or rows
        first, last = start // tall, -(-stop // tall)
        top, bottom = first * tall, min(last * tall, rows)
        stored = {name: part.rows(read, first, last) for name, part in self.parts.items() if part.shape}
        stored["codes"] = self.parts["codes"].rows(read, top, bottom)
        stored |= {name: part.evaluate(read) for name, part in self.parts.items() if not part.shape}
        return format.dequantise(Stored(**stored), columns)[start - top : stop - top]

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        rows, _ = self.shape[-2:]
        tall = parse(self.format).tile[0] or rows
        for name, part in self.parts.items():
            if not part.shape:
                yield whole(part)
            elif len(self.shape) > 2:
                yield part, start, stop
            elif name == "codes":
                yield part, start // tall * tall, min(-(-stop // tall) * tall, rows)
            else:
                yield part, start // tall, -(-stop // tall)


def dequantised(format: str, shape: tuple[int, ...], parts: Mapping[str, Recipe]) -> Recipe:
    """The float weight of that shape."""
    return Dequantised(shape, torch.float32, format, parts)


class _Divided(Exception):
    """A step takes apart, or joins, what a part holds one number of."""


def parts_of(recipe: Recipe) -> tuple[str, dict[str, Recipe]] | None:
    """(format, its parts) of a recipe that rearranges quantised weights of one format and leaves each of their rows whole.

    The parts are rearranged as the weights are, so that a target which holds the format takes the bytes as they stand.
    None where that cannot be: columns are cut, moved or computed with, a tile of several rows is cut, rows under different
    scales of all scales are joined, formats differ. Casts to another floating-point type are left out: what they round
    away, the parts still have.
    """
    weights = list(_weights(recipe))
    known = {weight.format for weight in weights if weight is not None}
    if None in weights or len(known) != 1:
        return None
    format = known.pop()
    tall = parse(format).tile[0]
    held = [name for name in PARTS if weights[0] is not None and name in weights[0].parts]
    try:
        return format, {name: _part(recipe, name, 1 if name == "codes" else tall) for name in held}
    except _Divided:
        return None


def _weights(recipe: Recipe) -> Iterator[Dequantised | None]:
    """The quantised weights that a recipe rearranges, and None for anything else in it."""
    if isinstance(recipe, Dequantised):
        yield recipe
    elif isinstance(recipe, Stack | Concat):
        for part in recipe.parts:
            yield from _weights(part)
    elif isinstance(recipe, Slice | Pick | Permute | Reshape | Cast):
        yield from _weights(recipe.source)
    else:
        yield None


def _part(recipe: Recipe, name: str, tall: int) -> Recipe:
    """One part of all weights in a recipe, rearranged as the recipe says; `tall` rows (0: all) share an entry of it."""
    if isinstance(recipe, Dequantised):
        return recipe.parts[name]
    fixed = 1 if tall == 1 and name != "whole" else 2  # how many of the last dimensions belong together
    if isinstance(recipe, Stack | Concat):
        return _joined(recipe, [_part(part, name, tall) for part in recipe.parts], fixed, tall if name != "whole" else 0)
    assert isinstance(recipe, Slice | Pick | Permute | Reshape | Cast)
    part, rank = _part(recipe.source, name, tall), len(recipe.source.shape)
    if isinstance(recipe, Slice | Pick):
        if name == "whole" and recipe.dim == rank - 2:
            return part
        return _taken(recipe, part, fixed, tall)
    if isinstance(recipe, Permute):
        _refuse_unless(recipe.order[-fixed:] == tuple(range(rank - fixed, rank)))
        return recipes.permute(part, recipe.order[: len(part.shape)])
    if isinstance(recipe, Reshape):
        _refuse_unless(recipe.shape[-fixed:] == recipe.source.shape[-fixed:])
        return recipes.reshape(part, recipe.shape[:-fixed] + part.shape[rank - fixed :])
    _refuse_unless(recipe.dtype.is_floating_point)
    return part


def _joined(recipe: Stack | Concat, parts: list[Recipe], fixed: int, tall: int) -> Recipe:
    """The parts joined as the recipe joins their weights; along N only where whole tiles meet."""
    along_rows = recipe.dim == len(recipe.shape) - 2
    if isinstance(recipe, Stack):
        _refuse_unless(recipe.dim < len(recipe.shape) - fixed)
        return recipes.stack(parts, recipe.dim)
    if along_rows and fixed == 2:
        _refuse_unless(tall > 0 and all(part.shape[-2] % tall == 0 for part in recipe.parts[:-1]))
    _refuse_unless(recipe.dim < len(recipe.shape) - 1)
    return recipes.concat(parts, recipe.dim)


def _taken(recipe: Slice | Pick, part: Recipe, fixed: int, tall: int) -> Recipe:
    """What of a part belongs to the rows or experts that the recipe takes; along N only whole tiles."""
    rank = len(recipe.shape)
    _refuse_unless(recipe.dim < rank - 1)
    along_rows = recipe.dim == rank - 2 and fixed == 2
    if isinstance(recipe, Pick):
        _refuse_unless(not along_rows)
        return pick(part, recipe.dim, recipe.indices)
    if not along_rows:
        return recipes.slice_of(part, recipe.dim, recipe.start, recipe.stop, recipe.step)
    to_the_end = recipe.stop == recipe.source.shape[-2]
    _refuse_unless(tall > 0 and recipe.step == 1)
    _refuse_unless(recipe.start % tall == 0 and (to_the_end or recipe.stop % tall == 0))
    return recipes.slice_of(part, recipe.dim, recipe.start // tall, -(-recipe.stop // tall))


def _refuse_unless(kept: bool) -> None:
    if not kept:
        raise _Divided
