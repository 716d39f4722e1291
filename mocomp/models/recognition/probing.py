"""A copy of a module in float64, on which everything may be tried."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

NARROW = (torch.float32, torch.float16, torch.bfloat16)
CASTS = (Tensor.float, Tensor.half, Tensor.bfloat16)


class NotAMixture(Exception):
    """Why a block could not be proven, and by how much the nearest kind is off (relative).

    `depth` is how many steps of the proof it passed before.
    """

    depth = 0

    def __init__(self, reason: str, error: float = float("inf")) -> None:
        super().__init__(reason)
        self.error = error


class _Widened(TorchFunctionMode):
    """Casts to narrower floats give float64: a router that computes in float32 would otherwise hide errors of 1e-7."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        named = {name: _widened(value) for name, value in (kwargs or {}).items()}
        return (Tensor.double if func in CASTS else func)(*map(_widened, args), **named)


def _widened(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value in NARROW else value


@contextmanager
def in_float64() -> Iterator[None]:
    """Everything that runs inside computes in float64, without gradients."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad(), _Widened():
            yield
    finally:
        torch.set_default_dtype(before)


def copied(module: nn.Module) -> nn.Module:
    """A deep copy in float64, tensors that are plain attributes of a submodule among them."""
    made = copy.deepcopy(module).double()
    for child in made.modules():
        for name, value in vars(child).items():
            if isinstance(value, Tensor):
                setattr(child, name, widen(value))
    return made.requires_grad_(False)


def widen(value: Any) -> Any:
    """A floating tensor in float64; anything else as it is."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def tensor_at(module: nn.Module, path: str) -> Tensor:
    """The parameter or buffer that a dotted path names."""
    owner, _, leaf = path.rpartition(".")
    return getattr(module.get_submodule(owner), leaf)
