"""Whether layers look at their own number: while they are traced, what they have in its place writes down who uses it.

A layer that does computes something that its likes do not, and only the layers that are traced can be seen to. A cache is told
the number to know whose keys are meant; that is all that a number may be for.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mocomp.models.repetition.alike import OWN_NUMBER, Stack

CACHES = "transformers.cache_utils"
"""The module whose code may use a number."""
OF_TWO = ("add", "sub", "mul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "or", "xor")
USES = ("eq", "ne", "lt", "le", "gt", "ge", "hash", "index", "int", "float", "complex", "bool", "trunc", "round", "floor")
USES += ("ceil", "neg", "pos", "abs", "invert", "str", "repr", "format", *OF_TWO, *(f"r{name}" for name in OF_TWO))


class Number:
    """The number of a layer; every use of it outside `CACHES` is written to `uses`. It is no int, since a list is indexed with
    an int without a word to it, but says that it is one."""

    __slots__ = ("uses", "value")

    def __init__(self, value: int, uses: list[str]):
        self.value, self.uses = value, uses

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return int

    def __getattr__(self, name: str) -> Any:
        self.uses.append(name)
        return getattr(self.value, name)


def _noted(name: str) -> Callable[..., Any]:
    def use(self: Number, *args: Any) -> Any:
        if sys._getframe(1).f_globals.get("__name__") != CACHES:
            self.uses.append(name)
        return getattr(self.value, name)(*(arg.value if type(arg) is Number else arg for arg in args))

    return use


for _use in USES:
    setattr(Number, f"__{_use}__", _noted(f"__{_use}__"))


@contextmanager
def watched(model: nn.Module, stacks: list[Stack]) -> Iterator[list[str]]:
    """While inside, the layers of stacks that are traced have `Number`s; the list gets what was done with them."""
    uses: list[str] = []
    restore: list[tuple[dict[str, Any], str, int]] = []
    for stack in stacks:
        layers, run = model.get_submodule(stack.name), stack.run
        for number in (*run.first, *run.second, *run.last):
            restore += [(vars(m), name, value) for m in layers[number].modules() for name, value in _numbers(m)]  # type: ignore[index]
    try:
        for own, name, value in restore:
            own[name] = Number(value, uses)
        yield uses
    finally:
        for own, name, value in restore:
            own[name] = value


def _numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    for name in OWN_NUMBER:
        if type(value := vars(module).get(name)) is int:
            yield name, value
