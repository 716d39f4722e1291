"""Whether two recipes are of the same weight, though each was made for a graph of its own."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from mocomp.weights.recipes import Recipe


def same(first: Any, second: Any) -> bool:
    """Whether recipes, or parts of them, say the same: kind, shape, dtype and what is read. Functions that were made twice are
    compared by their names."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Recipe):
        return all(same(getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, (tuple, list)):
        return len(first) == len(second) and all(map(same, first, second))
    if callable(first):
        return getattr(first, "__qualname__", "") == getattr(second, "__qualname__", "")
    return first == second
