"""Each parameter of a transformers model as a recipe over the tensors of its checkpoint.

transformers renames and packs tensors when it loads (per-expert tensors on disk, one stack in the module). Its own
rules are run here, its own code on recipes in place of tensors, so that every family it can load is bound alike.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from torch import nn

from mocomp.errors import BadInput
from mocomp.quant.reading import tensors_of
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Recipe
from mocomp.weights.symbolic import RecipeTensor

OTHER_MODEL = "config.json and the weights are not of the same model."


def bind(model: Any, checkpoint: Checkpoint, needed: set[str] | None = None) -> tuple[dict[str, Recipe], list[str]]:
    """(recipe of every parameter and persistent buffer, names in the checkpoint that the model has no place for).

    Weights that are quantised in the checkpoint are bound as the floats that they stand for (`mocomp.quant.reading`).
    Raises Unsupported where mocomp cannot read how they are quantised, BadInput for a parameter that the checkpoint lacks,
    unless it is not among the `needed` (those of a part of the model that a trace did not come to), or holds in another
    shape.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    places = model.state_dict()
    rules = get_model_conversion_mapping(model) or []
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    converter_of = {pattern: converter for converter in converters for pattern in converter.source_patterns}

    bound: dict[str, Recipe] = {}
    conversions: dict[str, Any] = {}
    unused: list[str] = []
    tensors = tensors_of(checkpoint)
    for name in sorted(tensors, key=dot_natural_key):
        prefix = model.base_model_prefix
        place, pattern = rename_source_key(name, renamings, converters, prefix, places)
        if place not in places and name in places:
            place, pattern = rename_source_key(name, [], [], prefix, places)
        if place not in places:
            unused.append(name)
        elif pattern is None:
            bound[place] = tensors[name]
        else:
            conversion = conversions.setdefault(place, copy.deepcopy(converter_of[pattern]))
            conversion.add_tensor(place, name, pattern, RecipeTensor(tensors[name]))
    for place, conversion in conversions.items():
        try:
            converted = conversion.convert(place, model=model, config=model.config)
        except BadInput as error:
            raise BadInput(error.what, where=str(checkpoint.directory), fix=OTHER_MODEL) from error
        for target, tensor in converted.items():
            bound[target] = (tensor[0] if isinstance(tensor, list) else tensor).recipe
    return _completed(model, checkpoint, bound, places, needed), unused


def bind_nothing(model: nn.Module) -> dict[str, Recipe]:
    """Recipes of the right shapes that nobody can evaluate, for looking at a model that is not at hand."""
    live = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    return {
        name: recipes.Tensor(tuple(tensor.shape), tensor.dtype, name) if tensor.is_meta else recipes.literal(tensor)
        for name, tensor in live.items()
    }


def _completed(
    model: nn.Module,
    checkpoint: Checkpoint,
    bound: dict[str, Recipe],
    places: dict[str, torch.Tensor],
    needed: set[str] | None,
) -> dict[str, Recipe]:
    """Tied parameters share a recipe, buffers of no checkpoint become literals, types are those of the model."""
    complete: dict[str, Recipe] = {}
    holders: dict[int, list[str]] = defaultdict(list)
    live = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
    for name, tensor in live.items():
        holders[id(tensor)].append(name)
    missing = []
    for names in holders.values():
        tensor = live[names[0]]
        source = next((bound[name] for name in names if name in bound), None)
        if source is None and not any(name in places for name in names) and not tensor.is_meta:
            source = recipes.literal(tensor)
        if source is None:
            missing += names[:1] if needed is None or needed.intersection(names) else []
            continue
        for name in names:
            complete[name] = _checked(name, recipes.cast(source, tensor.dtype), tensor, checkpoint)
    if missing:
        raise BadInput(
            f"{len(missing)} parameters of {type(model).__name__} are not in the checkpoint: {', '.join(missing[:4])}"
            + (" ..." if len(missing) > 4 else ""),
            where=str(checkpoint.directory),
            fix="The shards are incomplete, or config.json describes another model.",
        )
    return complete


def _checked(name: str, recipe: Recipe, tensor: torch.Tensor, checkpoint: Checkpoint) -> Recipe:
    if recipe.shape == tuple(tensor.shape):
        return recipe
    sources = [leaf.name for leaf in recipe.leaves()]
    raise BadInput(
        f"{name} is {list(recipe.shape)} in the checkpoint ({', '.join(sources[:2])}{' ...' if len(sources) > 2 else ''}), "
        f"expected {list(tensor.shape)}",
        where=str(checkpoint.directory),
        fix=OTHER_MODEL,
    )
