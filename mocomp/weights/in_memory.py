"""The weights of a module in memory, read as those of a checkpoint are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType

import torch

from mocomp.weights.recipes import Tensor


@dataclass(frozen=True)
class Held:
    """Shape and type of a tensor in memory."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class InMemory:
    """Tensors by name; what a `Checkpoint` is to weights on disk. Those of several names (tied weights) are there once.

    In recipes `label` stands before their names.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], made_of: Mapping[str, int] | None = None, label: str = ""):
        self.label, self._made_of = label, dict(made_of or {})
        self._tensors = {name: tensor.detach() for name, tensor in tensors.items()}
        first: dict[int, str] = {}
        self._names = {name: first.setdefault(id(tensor), name) for name, tensor in tensors.items()}
        own = dict.fromkeys(self._names.values())
        self.entries = {name: Held(tuple(self._tensors[name].shape), self._tensors[name].dtype) for name in own}

    def __enter__(self) -> InMemory:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    @property
    def nbytes(self) -> int:
        return sum(math.prod(e.shape) * e.dtype.itemsize for e in self.entries.values())

    def sizes(self) -> dict[str, int]:
        """The files that they were `made_of`, with their lengths in bytes."""
        return self._made_of

    def holds(self, name: str) -> bool:
        """Whether a tensor has that name, its first or another."""
        return name in self._names

    def recipe(self, name: str) -> Tensor:
        """The weight of that name; of tied ones, that which comes first."""
        own = self._names[name]
        return Tensor(self.entries[own].shape, self.entries[own].dtype, self.label + own)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of a tensor (all of it when it is a scalar), in a buffer of its own."""
        tensor = self._tensors[name.removeprefix(self.label)]
        return (tensor[start:stop] if tensor.dim() else tensor).clone(memory_format=torch.contiguous_format)
