"""Calls of modules: how they were called in the model, and how to call them with other tokens."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from mocomp.models.recognition.probing import NotAMixture, widen

CALLS_KEPT = 2
"""Calls of one module that are remembered; they differ in shape if at all."""


CONSTANTS = (bool, int, float, str, torch.dtype, torch.device)
"""Arguments that are what they are in every call."""


@dataclass(frozen=True)
class Call:
    """The arguments of a module's forward, what it gave, and the names that the forward has for its arguments by position."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    names: tuple[str, ...]
    told: str = ""
    """An attribute of the module that somebody else set before the call: what it gives may depend on that."""


@dataclass(frozen=True)
class Port:
    """Where hidden states go into a forward and where they come out (index among the leaves).

    `position` is None for an argument that has a name alone; one by position may be given by its name all the same.
    """

    position: int | None
    name: str
    leaf: int

    def x(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """The hidden states [.., H] among arguments."""
        if self.position is None or self.position >= len(args):
            return kwargs[self.name]
        return args[self.position]

    def is_at(self, where: int | str) -> bool:
        """Whether a position or a name is that of the hidden states."""
        return where == (self.position if isinstance(where, int) else self.name)

    def y(self, result: Any) -> Tensor:
        """The hidden states [.., H] in a result."""
        return leaves(result)[self.leaf]


def leaves(result: Any) -> list[Any]:
    """The tensors and constants in a result, in order; a dataclass counts as its fields."""
    return pytree.tree_leaves(_plain(result), is_leaf=lambda value: value is None)


def rebuilt(result: Any, values: list[Any]) -> Any:
    """A result of the same structure with other leaves."""
    _, structure = pytree.tree_flatten(_plain(result), is_leaf=lambda value: value is None)
    made = pytree.tree_unflatten(values, structure)
    return dataclasses.replace(result, **made) if _is_record(result) else made


def _is_record(result: Any) -> bool:
    return dataclasses.is_dataclass(result) and not isinstance(result, type)


def _plain(result: Any) -> Any:
    if not _is_record(result):
        return result
    return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}


def ports(call: Call) -> list[Port]:
    """Where hidden states may go through a call: pairs of an argument and a leaf of the result with one shape, or, where
    there are none, with shapes that differ in the last size alone."""
    arguments: list[tuple[int | str, Any]] = [*enumerate(call.args), *call.kwargs.items()]
    inputs = [(where, value) for where, value in arguments if _is_hidden(value)]
    outputs = [(leaf, y) for leaf, y in enumerate(leaves(call.result)) if _is_hidden(y)]
    for sizes in (slice(None), slice(-1)):
        for leaf, y in outputs:
            found = [_port(call, where, leaf) for where, x in inputs if x.shape[sizes] == y.shape[sizes]]
            if found:
                return found
    return []


def _port(call: Call, where: int | str, leaf: int) -> Port:
    if isinstance(where, int):
        return Port(where, call.names[where] if where < len(call.names) else "", leaf)
    return Port(call.names.index(where) if where in call.names else None, where, leaf)


def _is_hidden(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() >= 2


def record(module: nn.Module, calls: list[dict[str, Tensor]], names: Iterable[str]) -> dict[str, list[Call]]:
    """How the submodules `names` are called while `module` runs on `calls`."""
    seen: dict[str, list[Call]] = {name: [] for name in names}
    handles, pending = [], {name: [] for name in seen}
    first = {name: _attributes(module.get_submodule(name)) for name in seen}
    told: dict[str, str] = {}

    def before(name: str, args: tuple, kwargs: dict) -> None:
        if name not in told:
            now = _attributes(module.get_submodule(name))
            told[name] = next((path for path, value in now.items() if first[name].get(path) is not value), "")
        pending[name].append(pytree.tree_map_only(Tensor, Tensor.clone, (args, kwargs)))

    def after(name: str, result: Any) -> None:
        args, kwargs = pending[name].pop()
        if len(seen[name]) < CALLS_KEPT:
            seen[name].append(Call(args, kwargs, result, _names(module.get_submodule(name)), told[name]))

    for name in seen:
        child = module.get_submodule(name)
        handles.append(child.register_forward_pre_hook(lambda _, a, k, n=name: before(n, a, k), with_kwargs=True))
        handles.append(child.register_forward_hook(lambda _, a, r, n=name: after(n, r)))
    try:
        for call in calls:
            module(**{name: widen(value) for name, value in call.items()})
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What a module and those in it carry besides parameters, buffers and modules."""
    return {
        f"{path}.{name}".lstrip("."): value
        for path, child in module.named_modules()
        for name, value in vars(child).items()
        if not name.startswith("_")
    }


def _names(module: nn.Module) -> tuple[str, ...]:
    """What a forward calls the arguments that may be given by position."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return tuple(p.name for p in inspect.signature(module.forward).parameters.values() if p.kind in kinds)


def redrawn(call: Call, port: Port, x: Tensor, generator: torch.Generator) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of `call` with `x` for its hidden states, and every other tensor drawn anew in sizes that go with x.

    A size of another argument that equals that of the hidden states at the same place, or their number of tokens, follows.
    Raises NotAMixture for an argument of a kind that may hold tensors nobody can draw.
    """
    old = port.x(call.args, call.kwargs)

    def drawn(value: Any) -> Any:
        if isinstance(value, Tensor):
            return _alike(value, old, x, generator)
        if value is not None and not isinstance(value, CONSTANTS):
            raise NotAMixture(f"it is given a {type(value).__name__}, and what it gives may depend on that")
        return value

    def other(where: int | str, value: Any) -> Any:
        return x if port.is_at(where) else pytree.tree_map(drawn, value)

    args = tuple(other(i, value) for i, value in enumerate(call.args))
    return args, {name: other(name, value) for name, value in call.kwargs.items()}


def _alike(value: Tensor, old: Tensor, new: Tensor, generator: torch.Generator) -> Tensor:
    shape, tokens = list(value.shape), old.shape[:-1].numel()
    for axis, size in enumerate(shape):
        if axis < old.dim() - 1 and size == old.shape[axis]:
            shape[axis] = new.shape[axis]
        elif size == tokens:
            shape[axis] = new.shape[:-1].numel()
    if value.is_floating_point():  # with zeros, which are what a mask forbids
        drawn = float(value.std(correction=0) + 1) * torch.randn(shape, generator=generator, dtype=value.dtype)
        return drawn * torch.randint(0, 4, shape, generator=generator).bool()
    low, high = (0, 1) if value.dtype == torch.bool else (min(int(value.min()), 0), int(value.max()) + 1)
    return torch.randint(low, high + 1, shape, generator=generator).to(value.dtype)
