"""Torch ops on recipes: run weight-rearranging code on expressions in place of data.

Used twice: on the conversions that transformers does when it loads a checkpoint, by handing them a
`RecipeTensor`, and on the parts of a traced graph that depend on weights alone.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from mocomp.errors import MocompError
from mocomp.weights import recipes
from mocomp.weights.recipes import Recipe

aten = torch.ops.aten


def _transpose(source: Recipe, first: int, second: int) -> Recipe:
    order = list(range(len(source.shape)))
    order[first], order[second] = order[second], order[first]
    return recipes.permute(source, tuple(order))


def _slice(source: Recipe, dim: int = 0, start: int | None = None, stop: int | None = None, step: int = 1) -> Recipe:
    length = source.shape[dim]
    return recipes.slice_of(source, dim % len(source.shape), start or 0, length if stop is None else stop, step)


def _select(source: Recipe, dim: int, index: int) -> Recipe:
    dim, index = dim % len(source.shape), index % source.shape[dim]
    one = recipes.slice_of(source, dim, index, index + 1)
    return recipes.reshape(one, source.shape[:dim] + source.shape[dim + 1 :])


def _view(source: Recipe, shape: list[int]) -> Recipe:
    known = 1
    for size in shape:
        known *= size if size != -1 else 1
    total = 1
    for size in source.shape:
        total *= size
    return recipes.reshape(source, tuple(total // known if size == -1 else size for size in shape))


def _flatten(source: Recipe, start: int = 0, end: int = -1) -> Recipe:
    start, end = start % len(source.shape), end % len(source.shape)
    return _view(source, [*source.shape[:start], -1, *source.shape[end + 1 :]])


def _unsqueeze(source: Recipe, dim: int) -> Recipe:
    dim %= len(source.shape) + 1
    return recipes.reshape(source, (*source.shape[:dim], 1, *source.shape[dim:]))


def _split(source: Recipe, size: int | list[int], dim: int = 0) -> list[Recipe]:
    dim, length = dim % len(source.shape), source.shape[dim]
    sizes = size if isinstance(size, list) else [min(size, length - at) for at in range(0, length, size)]
    pieces, at = [], 0
    for piece in sizes:
        pieces.append(recipes.slice_of(source, dim, at, at + piece))
        at += piece
    return pieces


def _cast(source: Recipe, *args: Any, dtype: torch.dtype | None = None, **rest: Any) -> Recipe:
    dtypes = [a for a in args if isinstance(a, torch.dtype)]
    return recipes.cast(source, dtype or (dtypes[0] if dtypes else source.dtype))


def _cat(parts: list[Recipe], dim: int = 0) -> Recipe:
    dtype = functools.reduce(torch.promote_types, [part.dtype for part in parts])
    return recipes.concat([recipes.cast(part, dtype) for part in parts], dim % len(parts[0].shape))


def _pad(source: Recipe, pads: list[int], mode: str = "constant", value: float | None = None) -> Recipe:
    """`pads` come in pairs (before, after), from the last dimension on."""
    if mode != "constant":
        raise MocompError(f"padding of mode {mode}", where="a rearrangement of weights")
    for i, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        dim = len(source.shape) - 1 - i
        around = [_filled(source, dim, size, value or 0.0) for size in (before, after)]
        source = recipes.concat([part for part in (around[0], source, around[1]) if part.shape[dim]], dim)
    return source


def _filled(like: Recipe, dim: int, size: int, value: float) -> Recipe:
    """`size` slices along `dim` that hold one number, in the memory of one element."""
    shape = (*like.shape[:dim], size, *like.shape[dim + 1 :])
    return recipes.Literal(shape, like.dtype, torch.full((), value, dtype=like.dtype).expand(shape))


def _same(source: Recipe, **rest: Any) -> Recipe:
    return source


OPS: dict[Any, Callable[..., Any]] = {
    aten.transpose.int: _transpose,
    aten.t.default: lambda source: _transpose(source, 0, 1),
    aten.numpy_T.default: lambda source: recipes.permute(source, tuple(reversed(range(len(source.shape))))),
    aten.mT.default: lambda source: _transpose(source, -2, -1),
    aten.permute.default: lambda source, order: recipes.permute(source, tuple(d % len(order) for d in order)),
    aten.slice.Tensor: _slice,
    aten.select.int: _select,
    aten.view.default: _view,
    aten.reshape.default: _view,
    aten._unsafe_view.default: _view,
    aten.unsqueeze.default: _unsqueeze,
    aten.squeeze.dim: lambda source, dim: _select(source, dim, 0) if source.shape[dim] == 1 else source,
    aten.split.Tensor: _split,
    aten.split_with_sizes.default: _split,
    aten.chunk.default: lambda source, chunks, dim=0: _split(source, -(-source.shape[dim] // chunks), dim),
    aten.unbind.int: lambda source, dim=0: [_select(source, dim, i) for i in range(source.shape[dim])],
    operator.getitem: operator.getitem,  # of the lists that the four above give
    aten.flatten.using_ints: _flatten,
    aten.cat.default: _cat,
    aten.stack.default: lambda parts, dim=0: recipes.stack(parts, dim % (len(parts[0].shape) + 1)),
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: lambda source, pads, value=0.0: _pad(source, pads, value=value),
    aten.to.dtype: _cast,
    aten.to.dtype_layout: _cast,
    aten.to.device: _cast,
    aten._to_copy.default: _cast,
    aten.clone.default: _same,
    aten.contiguous.default: _same,
    aten.detach.default: _same,
    aten.alias.default: _same,
}
"""Ops that only rearrange: they stay lazy, row by row."""


def apply(op: Any, args: tuple, kwargs: dict) -> Any:
    """`op` on arguments in which recipes stand for tensors; returns recipes in the structure of its result.

    Raises MocompError for an op that writes to its argument: the recipes made of that before would not know.
    """
    if op in OPS:
        return OPS[op](*args, **kwargs)
    if op._schema.is_mutable:
        raise MocompError(f"{op} writes to a tensor that has no data yet", where="a rearrangement of weights")
    flat, structure = tree_flatten((args, kwargs))
    sources = tuple(leaf for leaf in flat if isinstance(leaf, Recipe))

    def compute(tensors: list[torch.Tensor]) -> Any:
        values = iter(tensors)
        a, k = tree_unflatten([next(values) if isinstance(leaf, Recipe) else leaf for leaf in flat], structure)
        return op(*a, **k)

    meta = compute([torch.empty(source.shape, dtype=source.dtype, device="meta") for source in sources])
    if isinstance(meta, torch.Tensor):
        return recipes.Apply(tuple(meta.shape), meta.dtype, compute, sources)
    return [
        recipes.Apply(tuple(m.shape), m.dtype, lambda tensors, i=i: compute(tensors)[i], sources) for i, m in enumerate(meta)
    ]


class RecipeTensor(torch.Tensor):
    """A tensor with a shape and a recipe but no data; ops on it make tensors with larger recipes."""

    recipe: Recipe

    @staticmethod
    def __new__(cls, recipe: Recipe) -> RecipeTensor:
        tensor = torch.Tensor._make_wrapper_subclass(cls, recipe.shape, dtype=recipe.dtype, device=torch.device("cpu"))
        tensor.recipe = recipe
        return tensor

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"RecipeTensor({self.recipe})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        plain_args, plain_kwargs = tree_map_only(RecipeTensor, lambda t: t.recipe, (args, kwargs or {}))
        return tree_map_only(Recipe, RecipeTensor, apply(func, plain_args, plain_kwargs))
