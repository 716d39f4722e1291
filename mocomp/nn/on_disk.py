"""A model whose weights stay on disk and are read when something computes with them, so that it runs in the memory of one.

Every number is that of the model in memory: the same operators get the same values, only later.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from mocomp.models.binding import bind
from mocomp.models.source import Source
from mocomp.nn.model import empty
from mocomp.weights.arithmetic import pick
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Reader, Recipe

aten = torch.ops.aten
SMALL = 1 << 16
"""Bytes of a weight up to which it is always kept: norms, biases and routers are read again and again."""


class Weight(Tensor):
    """A weight that any operator takes for a tensor, read anew each time unless there was room to keep it."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    recipe: Recipe
    shelf: Shelf

    @staticmethod
    def __new__(cls, recipe: Recipe, shelf: Shelf) -> Weight:
        device = torch.device("cpu")
        made = torch.Tensor._make_wrapper_subclass(cls, recipe.shape, dtype=recipe.dtype, device=device, requires_grad=False)
        made.recipe, made.shelf = recipe, shelf
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is aten.detach.default:  # what nn.Parameter makes of what it is given
            return Weight(args[0].recipe, args[0].shelf)
        if func in PARTS and isinstance(args[0], Weight) and (part := PARTS[func](args[0], *args[1:])) is not None:
            return part
        given, named = tree_map(lambda value: value.whole() if isinstance(value, Weight) else value, (args, kwargs or {}))
        return func(*given, **named)

    def whole(self) -> Tensor:
        """All of it, in memory."""
        return self.shelf.get(self.recipe)


class Shelf:
    """Weights that were read, kept as far as there is room; the first come stay, since layers are asked for in turn and what
    was used last is wanted last."""

    def __init__(self, read: Reader, room: int):
        self.read, self.room = read, room
        self.kept: dict[Recipe, Tensor] = {}

    def fits(self, recipe: Recipe) -> bool:
        """Whether it is kept, or would be."""
        return recipe in self.kept or recipe.nbytes <= max(self.room, SMALL)

    def get(self, recipe: Recipe) -> Tensor:
        """A whole weight."""
        if recipe in self.kept:
            return self.kept[recipe]
        value = recipe.evaluate(self.read)
        if self.fits(recipe):
            self.kept[recipe] = value
            self.room -= recipe.nbytes
        return value


def _one(weight: Weight, dim: int, index: int) -> Tensor | None:
    """One row, such as an expert of a bank, without the others; None where the whole is to be read, as below."""
    if dim or weight.shelf.fits(weight.recipe):
        return None
    row = index % weight.shape[0]
    return weight.recipe.rows(weight.shelf.read, row, row + 1)[0]


def _embedded(weight: Weight, ids: Tensor, *rest: Any) -> Tensor | None:
    """The rows of a table that tokens ask for."""
    if weight.shelf.fits(weight.recipe) or not ids.numel():
        return None
    rows, place = ids.unique(return_inverse=True)
    return pick(weight.recipe, 0, rows.tolist()).evaluate(weight.shelf.read)[place]


PARTS: dict[Any, Callable[..., Tensor | None]] = {aten.select.int: _one, aten.embedding.default: _embedded}
"""Operators that need some rows of a weight alone."""


def on_disk(source: Source, memory: int) -> Any:
    """The model of a source as `assemble` makes it, that holds at most `memory` bytes of weights besides the one in use."""
    model, checkpoint = empty(source), Checkpoint(source.directory)
    weakref.finalize(model, checkpoint.__exit__, None, None, None)
    recipes, _ = bind(model, checkpoint)
    shelf = Shelf(checkpoint.read, memory)
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if not parameter.is_meta:
            continue
        owner, _, own = name.rpartition(".")
        store = model.get_submodule(owner)
        if isinstance(parameter, nn.Parameter):
            store._parameters[own] = nn.Parameter(Weight(recipes[name], shelf), requires_grad=False)
        else:
            store._buffers[own] = recipes[name].evaluate(checkpoint.read)
    model.tie_weights()
    return model.eval()
