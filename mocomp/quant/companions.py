"""The tensors that hold one quantised weight in a checkpoint: found by name, checked, and made into the float weight.

Dimension letters: N rows (outputs), K columns (inputs).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mocomp.errors import BadInput, Unsupported, Usage
from mocomp.quant.dequantised import dequantised
from mocomp.quant.formats import Format, parse
from mocomp.quant.words import in_order, rowwise
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Recipe

FLOAT = "Convert the float checkpoint that it was made from, and quantise it here."


class Companions:
    """The tensors of one weight: those of a checkpoint whose names begin alike. `taken` are the names asked for."""

    def __init__(self, checkpoint: Checkpoint, stem: str):
        self.stem, self.taken = stem, set[str]()
        self._checkpoint = checkpoint

    def find(self, own: str, *shape: int) -> Recipe | None:
        """The tensor stem + own, None if there is none. Raises BadInput where it has another `shape` (if that is given)."""
        name = self.stem + own
        if name not in self._checkpoint.entries:
            return None
        self.taken.add(name)
        recipe = self._checkpoint.recipe(name)
        if shape and recipe.shape != shape:
            raise self.bad(f"{name} is {list(recipe.shape)}, expected {list(shape)}")
        return recipe

    def take(self, own: str, *shape: int) -> Recipe:
        """The tensor stem + own. Raises BadInput where there is none, or it has another shape."""
        recipe = self.find(own, *shape)
        if recipe is None:
            raise self.bad(f"{self.stem + own} is missing, without which the weight cannot be read")
        return recipe

    def words(self, own: str) -> Recipe:
        """The tensor stem + own, a matrix of 32-bit words. Raises BadInput where it is none."""
        recipe = self.take(own)
        if len(recipe.shape) != 2 or recipe.dtype != torch.int32:
            raise self.bad(f"{self.stem + own} is {list(recipe.shape)} {recipe.dtype}, expected a matrix of torch.int32")
        return recipe

    def scales(self, own: str, shape: tuple[int, ...]) -> Recipe:
        """The scales in that shape, float32; one for each row, or for all, may be stored in fewer dimensions."""
        recipe = self.take(own)
        if len(recipe.shape) > len(shape) or [s for s in recipe.shape if s != 1] != [s for s in shape if s != 1]:
            raise self.bad(f"{self.stem + own} is {list(recipe.shape)}, expected {list(shape)}")
        if not recipe.dtype.is_floating_point:
            raise self.bad(f"{self.stem + own} is of type {recipe.dtype}, expected floating point")
        return recipes.cast(recipes.reshape(recipe, shape), torch.float32)

    def value(self, own: str) -> torch.Tensor:
        """A small tensor on which the layout of the others depends, read at once."""
        recipe = self.take(own)
        return recipe.evaluate(self._checkpoint.read)

    def order(self, own: str, columns: int, group: int) -> torch.Tensor | None:
        """The columns [K] group by group, from the group of each, stem + own [K]; None where they stand so, or nobody says."""
        if self.find(own, columns) is None:
            return None
        groups = self.value(own)
        plain = (torch.arange(columns) // group).to(groups.dtype)
        if torch.equal(groups, plain):
            return None
        order = groups.argsort(stable=True)
        if not torch.equal(groups[order], plain):
            raise self.bad(f"{self.stem + own} does not put {group} columns into each group")
        return order.to(torch.int32)

    def weight(
        self,
        format: str,
        shape: tuple[int, ...],
        parts: Mapping[str, Recipe | None],
        order: torch.Tensor | None = None,
    ) -> Recipe:
        """The float weight of `parts`, those that are None left out. Raises Unsupported when mocomp has no such format.

        With act-order (`order`) the columns of a group are not neighbours: they are dequantised side by side and put back.
        That makes the right floats, but no weight whose bytes could be passed on.
        """
        held, known = {name: part for name, part in parts.items() if part is not None}, self.form(format)
        if order is not None:
            held["codes"] = rowwise(held["codes"], lambda c: in_order(c, known.bits, order))
        for name, (expected, dtype) in known.shapes(shape).items():
            if held[name].shape != expected or held[name].dtype != dtype:
                raise self.bad(
                    f"its {name} are {list(held[name].shape)} {held[name].dtype}, expected {list(expected)} {dtype} "
                    f"for a weight {list(shape)} of format {format}"
                )
        made = dequantised(known.text, shape, held)
        if order is None:
            return made
        return rowwise(made, lambda w: w[:, order.argsort()])

    def form(self, format: str) -> Format:
        """The format of that text. Raises Unsupported where mocomp has none."""
        try:
            return parse(format)
        except Usage as error:
            raise self.unsupported(f"weights of format {format}") from error

    def bad(self, what: str) -> BadInput:
        """The error that says what is wrong with the tensors of this weight."""
        return BadInput(
            f"{self.stem.rstrip('.')}: {what}",
            where=str(self._checkpoint.directory),
            fix="The shards are incomplete, or quantization_config in config.json is of another checkpoint.",
        )

    def unsupported(self, what: str) -> Unsupported:
        """The error that says what mocomp cannot read of this weight."""
        return Unsupported(f"{self.stem.rstrip('.')}: {what}", where=str(self._checkpoint.directory), fix=FLOAT)
