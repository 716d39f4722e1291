"""What a module gives, as tensors by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from mocomp.errors import Unsupported, Usage


def named(result: Any, names: Sequence[str] = (), inputs: Collection[str] = ()) -> tuple[dict[str, Tensor], list[str]]:
    """(tensors by name, what was left out since it is no tensor) of what a forward returned.

    Keys of a dict and fields of a dataclass or named tuple are names, `outer.inner` within one another; a tuple gives output_0,
    output_1, and one tensor is `output`; one that is the name of one of the `inputs` too gets `_out` behind it. `names`,
    where given, are taken instead, in that order.
    Raises Unsupported where there is no tensor, Usage where `names` are not as many, or not unlike.
    """
    found = list(_leaves(result, ""))
    tensors = [(name, value) for name, value in found if isinstance(value, Tensor)]
    dropped = [f"{name} ({type(value).__name__})" for name, value in found if not isinstance(value, Tensor)]
    if not tensors:
        raise Unsupported(f"its forward gives no tensor but a {type(result).__name__}")
    if names and (len(names) != len(tensors) or len(set(names)) != len(names)):
        own = ", ".join(name for name, _ in tensors)
        raise Usage(f"--outputs names {', '.join(names)}, and it gives {len(tensors)}: {own}", fix="Give each a name.")
    if twice := [name for name in names if name in inputs]:
        raise Usage(f"--outputs names {twice[0]}, which is an input", fix="Give it another name.")
    chosen = names or [f"{name}_out" if name in inputs else name for name, _ in tensors]
    return dict(zip(chosen, (value for _, value in tensors), strict=True)), dropped


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    inner = _parts(value)
    if inner is None:
        yield name or "output", value
        return
    for key, part in inner.items():
        yield from _leaves(part, f"{name}.{key}" if name else str(key))


def _parts(value: Any) -> dict[Any, Any] | None:
    """What is inside of a value, by what it is called there; None for what is not made of others."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "_asdict"):
        return value._asdict()
    if isinstance(value, tuple | list):
        return {f"output_{i}": part for i, part in enumerate(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
