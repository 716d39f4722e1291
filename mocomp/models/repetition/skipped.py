"""Layers left out of a trace: while inside, each hands on what it is given, and what it is given is looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from mocomp.models.repetition.alike import Stack


class Differs(Exception):
    """A layer that is called otherwise than the one that it would be stamped from."""


@contextmanager
def skipped(model: nn.Module, stacks: list[Stack]) -> Iterator[None]:
    """While inside, the layers between the second and the last period of each stack compute nothing.

    Raises Differs inside for a layer that is not handed the very objects that its like in the second period was, and for layers
    whose result is not one tensor like the hidden state that they are given, alone or with nothing else.
    """
    with ExitStack() as changed:
        for stack in stacks:
            layers, run = model.get_submodule(stack.name), stack.run
            seen: dict[int, tuple[Any, Any]] = {}
            for place, number in enumerate(run.second):
                changed.enter_context(_forward(layers[number], _watched(layers[number].forward, place, seen)))  # type: ignore[index]
            for period in run.between:
                for place, number in enumerate(period):
                    changed.enter_context(_forward(layers[number], _passing(place, seen)))  # type: ignore[index]
        yield


@contextmanager
def _forward(layer: Any, forward: Callable[..., Any]) -> Iterator[None]:
    own = vars(layer).get("forward")
    vars(layer)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(layer)["forward"]
        else:
            vars(layer)["forward"] = own


def _watched(forward: Callable[..., Any], place: int, seen: dict[int, tuple[Any, Any]]) -> Callable[..., Any]:
    def watched(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        seen[place] = _rest(args, kwargs), _shape_of(result, args, kwargs)
        return result

    return watched


def _passing(place: int, seen: dict[int, tuple[Any, Any]]) -> Callable[..., Any]:
    def passing(*args: Any, **kwargs: Any) -> Any:
        rest, width = seen[place]
        if not _same(rest, _rest(args, kwargs)):
            raise Differs(f"layer {place} of a period is called with other arguments")
        x = _hidden(args, kwargs)
        return x if width is None else (x, *[None] * (width - 1))

    return passing


def _hidden(args: tuple, kwargs: dict[str, Any]) -> torch.Tensor:
    x = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(x, torch.Tensor):
        raise Differs("a layer is called without hidden states")
    return x


def _rest(args: tuple, kwargs: dict[str, Any]) -> tuple:
    return args[1:], {name: value for name, value in kwargs.items() if args or name != "hidden_states"}


def _shape_of(result: Any, args: tuple, kwargs: dict[str, Any]) -> int | None:
    """None for a result that is one tensor, the number of entries of a tuple that holds one and nothing else."""
    first, *others = result if isinstance(result, tuple) else (result,)
    x = _hidden(args, kwargs)
    if not isinstance(first, torch.Tensor) or any(other is not None for other in others):
        raise Differs("a layer gives more than hidden states")
    if (first.dim(), first.dtype) != (x.dim(), x.dtype):
        raise Differs("a layer gives other hidden states than it takes")
    return len(result) if isinstance(result, tuple) else None


def _same(a: Any, b: Any) -> bool:
    """Whether two arguments are one object, or hold the same ones in the same places, or are equal numbers or words."""
    if isinstance(a, (tuple, list)) and type(a) is type(b):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and type(a) is type(b):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return a is b or (isinstance(a, (bool, int, float, str)) and type(a) is type(b) and a == b)
