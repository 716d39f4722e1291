"""What a forward leaves behind in its module, and how it is undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[Callable[[], None]]:
    """While inside, the function that is given puts the attributes of all parts back to what they were (a loss of balance or
    counts that a forward notes in passing); in the end it is called. Buffers and parameters are not among them."""
    before = [(part, dict(vars(part))) for part in module.modules()]

    def restore() -> None:
        for part, attributes in before:
            for name in vars(part).keys() - attributes.keys():
                del vars(part)[name]
            vars(part).update(attributes)

    try:
        yield restore
    finally:
        restore()


@contextmanager
def hooked(module: nn.Module, after: Callable[[Any], Any]) -> Iterator[None]:
    """While inside, what the module gives is what `after` makes of it."""
    handle = module.register_forward_hook(lambda _module, _args, output: after(output))
    try:
        yield
    finally:
        handle.remove()
