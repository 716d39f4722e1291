"""The weights of one part of a model, as transformers loads them: its own code, given the tensors of that part alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mocomp.errors import MocompError
from mocomp.models.binding import bind
from mocomp.models.source import Source
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Cast, Recipe, Tensor

PIECE = 16 << 20
"""Bytes that are read at once of a tensor that is taken as it is."""


class LayerWeights:
    """Fills parameters of a `model`, made on the meta device, a few at a time, from a checkpoint.

    Which tensors belong to a parameter is asked of mocomp's recipes, what is made of them is transformers' affair; but where
    weights are quantised, or mixtures are of mocomp's own, they are the recipes', as in `Reference.load`.
    """

    def __init__(self, model: Any, source: Source, checkpoint: Checkpoint):
        self.model, self.checkpoint = model, checkpoint
        self.recipes, _ = bind(model, checkpoint)
        self.own = source.plan is not None or source.quantization is not None
        self.meta = {name: tensor for name, tensor in _tensors(model).items() if tensor.is_meta}
        ties: dict[int, list[str]] = defaultdict(list)
        for name, tensor in self.meta.items():
            ties[id(tensor)].append(name)
        self.ties = {name: ties[id(tensor)] for name, tensor in self.meta.items()}

    def load(self, names: Sequence[str]) -> None:
        """Give these parameters and buffers their values, in float32."""
        if self.own:
            self._by_recipes(names)
            return
        plain = [name for name in names if _is_as_stored(self.recipes[name])]
        self._by_transformers([name for name in names if name not in plain])
        for name in plain:
            self._by_rows(name)

    def release(self, names: Sequence[str]) -> None:
        """Let the values go. NaN stands in their place, in the memory of one number: so it shows where a part of the model
        computes with weights of another, while of the meta device torch makes whatever memory holds."""
        for name in names:
            meta = self.meta[name]
            nothing = torch.nan if meta.is_floating_point() else 0
            _set(self.model, name, _like(meta, torch.full((), nothing, dtype=meta.dtype).expand(meta.shape)))

    def _by_recipes(self, names: Sequence[str]) -> None:
        for name in names:
            _set(self.model, name, _like(self.meta[name], self.recipes[name].evaluate(self.checkpoint.read)))

    def _by_rows(self, name: str) -> None:
        """A parameter that is a tensor of the checkpoint as it is, such as a head: never there in two types at once."""
        recipe, value = self.recipes[name], torch.empty_like(self.meta[name], dtype=torch.float32, device="cpu")
        for start, stop in recipe.ranges(PIECE):
            value.view(recipe.shape)[start:stop] = recipe.rows(self.checkpoint.read, start, stop)
        _set(self.model, name, _like(self.meta[name], value))

    def _by_transformers(self, names: Sequence[str]) -> None:
        """Read in the type of the checkpoint and widened one after the other, so that what packs experts packs half as much."""
        if not names:
            return
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        places = list(dict.fromkeys(tied for name in names for tied in self.ties[name]))
        for place in places:
            held = {leaf.dtype for leaf in self.recipes[place].leaves()}
            dtype = held.pop() if len(held) == 1 else torch.float32
            _set(self.model, place, _like(self.meta[place], torch.empty_like(self.meta[place], dtype=dtype)))
        leaves = dict.fromkeys(leaf.name for name in names for leaf in self.recipes[name].leaves())
        lazy = {leaf: _Lazy(self.checkpoint, leaf) for leaf in leaves}
        rules: Any = get_model_conversion_mapping(self.model)
        convert_and_load_state_dict_in_model(self.model, lazy, LoadStateDictConfig(weight_mapping=rules))
        found = {place: _get(self.model, place) for place in places}
        self.release(places)
        for name in names:
            value = next((found[tied] for tied in self.ties[name] if not found[tied].is_meta), None)
            if value is None:
                raise MocompError(f"transformers gave {name} no weight", where=str(self.checkpoint.directory))
            if len(self.ties[name]) == 1:
                del found[name]
            _set(self.model, name, _like(self.meta[name], value.data.to(torch.float32)))


def _is_as_stored(recipe: Recipe) -> bool:
    """Whether a weight is one tensor of the checkpoint, perhaps in another type, whose rows can be read one after the other."""
    return bool(recipe.shape) and isinstance(recipe.source if isinstance(recipe, Cast) else recipe, Tensor)


class _Lazy:
    """A tensor of a checkpoint as transformers asks for one: read when it is sliced."""

    def __init__(self, checkpoint: Checkpoint, name: str):
        self.checkpoint, self.name = checkpoint, name
        self.entry = checkpoint.entries[name]

    def __getitem__(self, index: Any) -> torch.Tensor:
        whole = self.checkpoint.read(self.name, 0, self.entry.shape[0] if self.entry.shape else 1)
        return whole[index]

    def get_shape(self) -> list[int]:
        """As a slice of safetensors tells it."""
        return list(self.entry.shape)


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _like(old: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return nn.Parameter(value, requires_grad=False) if isinstance(old, nn.Parameter) else value


def _get(model: nn.Module, name: str) -> torch.Tensor:
    owner, _, own = name.rpartition(".")
    return getattr(model.get_submodule(owner), own)


def _set(model: nn.Module, name: str, value: torch.Tensor) -> None:
    owner, _, own = name.rpartition(".")
    module = model.get_submodule(owner)
    (module._parameters if isinstance(value, nn.Parameter) else module._buffers)[own] = value  # type: ignore[assignment]
