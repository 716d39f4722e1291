"""Other tensors in the place of those that a recipe reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

from mocomp.errors import BadInput
from mocomp.weights.recipes import Recipe, Tensor


def replaced(recipe: Recipe, others: Mapping[Recipe, Recipe]) -> Recipe:
    """The same expression of other recipes; raises BadInput for a tensor that none of `others` stands for."""
    if recipe in others:
        return others[recipe]
    if isinstance(recipe, Tensor):
        raise BadInput(f"tensor {recipe.name} is read in part only, and no other can be read in its place")
    changed: dict[str, object] = {}
    for field in fields(recipe):
        value = getattr(recipe, field.name)
        if isinstance(value, Recipe):
            changed[field.name] = replaced(value, others)
        elif isinstance(value, tuple) and value and all(isinstance(part, Recipe) for part in value):
            changed[field.name] = tuple(replaced(part, others) for part in value)
    return replace(recipe, **changed)  # type: ignore[arg-type]
