"""What recognition says of a module: the blocks that were proven, and those that came near."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from mocomp.experts import Expert
from mocomp.routers import Router


class Form(Protocol):
    """The canonical form of a block; it reads the parameters of whatever instance of the block it is given."""

    def forward(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the block's own forward gives, with the same structure; traceable."""
        ...

    def observe(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [T, H], ids [T, K], weights [T, K], y [T, H] of the mixture in the block."""
        ...


@dataclass(frozen=True)
class Found:
    """A block that was proven to be a mixture.

    `how` is "mixture" where router and experts are both canonical, and "dispatched" where the experts alone are: the
    block then is what applies expert e to slice e of its input, and `router` is None. `error` is relative.
    """

    name: str
    router: Router | None
    expert: Expert
    error: float
    how: str
    form: Form

    def observe(self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [T, H], ids [T, K], weights [T, K], y [T, H] (routed experts alone) of a call to `block` (this one, or the
        same of a copy), by its canonical form."""
        return self.form.observe(block, args, kwargs)


@dataclass(frozen=True)
class Missed:
    """A block that looks like a mixture and could not be proven to be one: why, with the nearest kind and its error."""

    name: str
    reason: str
    error: float = float("inf")


@dataclass
class Recognition:
    """What was found in a module, by the names of its submodules ("" is the module itself)."""

    blocks: list[Found] = field(default_factory=list)
    refused: list[Missed] = field(default_factory=list)

    @contextmanager
    def install(self, module: nn.Module) -> Iterator[None]:
        """The canonical forms in place of the forwards of `module` (or of a copy of it), until the context ends.

        Parameters stay where they are, under their names.
        """
        blocks = [(module.get_submodule(found.name), found) for found in self.blocks]
        before = [block.__dict__.get("forward") for block, _ in blocks]
        try:
            for block, found in blocks:
                block.forward = _forward(block, found.form)
            yield
        finally:
            for (block, _), forward in zip(blocks, before, strict=True):
                if forward is None:
                    block.__dict__.pop("forward", None)
                else:
                    block.forward = forward


def _forward(block: nn.Module, form: Form) -> Callable[..., Any]:
    @functools.wraps(block.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return form.forward(block, args, kwargs)

    return forward
