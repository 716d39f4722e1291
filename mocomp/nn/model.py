"""Models of transformers with mixtures of ours inside: put in, loaded from a checkpoint, saved as one."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mocomp.errors import BadInput, Unsupported
from mocomp.models.binding import bind
from mocomp.models.huggingface import compute_buffers, described_by_config
from mocomp.models.source import Source, files_to_carry, open_source
from mocomp.nn.depth import attach
from mocomp.nn.mixture import Mixture, TokenModality
from mocomp.plans.modality import POSITION, Modality
from mocomp.plans.plan import MODEL_TYPE, ModelPlan
from mocomp.weights import disk
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.output import new_directory
from mocomp.weights.recipes import literal
from mocomp.weights.shards import LARGEST, write_checkpoint


class Passed(nn.Module):
    """What stands where a dense block had a module that its mixture now does the work of."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def insert(model: nn.Module, plan: ModelPlan) -> nn.Module:
    """Put the mixtures of a plan into a model, without weights; the model is changed and returned.

    Raises BadInput when the plan names a module that the model does not have.
    """
    context = TokenModality(plan.modality)
    for mixture in plan.mixtures:
        _replace(model, mixture.enter, lambda old, mixture=mixture: Mixture(mixture, context))
        for name in mixture.leave:
            _replace(model, name, lambda old: Passed())
    for depth in plan.depths:
        attach(_module(model, depth.layer), depth)
    if plan.modality is not None and plan.modality.per_token:
        model.register_forward_pre_hook(_Told(context, plan.modality, model), with_kwargs=True)
    model.mocomp_plan = plan  # type: ignore[assignment]
    return model


def load(directory: str | Path, dtype: torch.dtype = torch.float32, trust_remote_code: bool = False) -> Any:
    """The model of a checkpoint of ours, ready to run or train. Raises BadInput for what is no such checkpoint."""
    source = open_source(str(directory), trust_remote_code)
    if source.plan is None:
        raise BadInput("it has no mixtures of mocomp", where=str(directory), fix="Load it with transformers.")
    with Checkpoint(source.directory) as checkpoint:
        return assemble(source, checkpoint, dtype)


def assemble(source: Source, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """The model of an opened source with its weights, in eager attention and with eager experts."""
    model = empty(source, dtype)
    recipes, _ = bind(model, checkpoint)
    for name, parameter in [*model.named_parameters(), *model.named_buffers()]:
        if not parameter.is_meta:
            continue
        value = recipes[name].evaluate(checkpoint.read)
        owner, _, own = name.rpartition(".")
        store = model.get_submodule(owner)
        is_parameter = isinstance(parameter, nn.Parameter)
        (store._parameters if is_parameter else store._buffers)[own] = nn.Parameter(value) if is_parameter else value
    model.tie_weights()
    return model.eval()


def empty(source: Source, dtype: torch.dtype = torch.float32) -> Any:
    """The model of a source on the meta device, its mixtures put in; its computed buffers are real."""
    from transformers.initialization import meta_device_safe_creation_ops

    with torch.device("meta"), meta_device_safe_creation_ops(), described_by_config(source):
        model = source.model_class._from_config(
            copy.deepcopy(source.config), dtype=dtype, attn_implementation="eager", experts_implementation="eager"
        )
        insert(model, source.plan or ModelPlan())
        model.to(dtype)
    compute_buffers(model)
    return model


def save(model: Any, directory: str | Path, like: str | Path | None = None, shard_bytes: int = LARGEST) -> None:
    """Write a model as a checkpoint that `load` and `mocomp convert` read, in the type that its weights have.

    `like` is a directory from which the tokenizer's files are taken; a file of weights has `shard_bytes` at most.
    """
    tensors = {tensor.data_ptr(): (name, tensor) for name, tensor in reversed(model.state_dict().items())}  # ties once
    weights = {name: literal(tensor) for name, tensor in reversed(tensors.values())}
    with new_directory(Path(directory)) as made:
        place = made.path
        write_checkpoint(place, weights, made.writer(_no_file), shard_bytes)
        write_config(place, model.config, model.mocomp_plan, [type(model).__name__])
        for path in files_to_carry(Path(like)) if like is not None else []:
            disk.copy(path, place / path.name)


def write_config(directory: Path, base: Any, plan: ModelPlan, architectures: list[str]) -> None:
    """The config.json of a checkpoint of ours: the plan, and the config of the model that it was made from."""
    described = json.loads(base.to_json_string()) | {"architectures": architectures}
    data = {"model_type": MODEL_TYPE, "mocomp": plan.to_json(), "base": described}
    disk.write_text(directory / "config.json", json.dumps(data, indent=2) + "\n")


def _no_file(name: str, start: int, stop: int) -> Tensor:
    raise AssertionError(f"{name} is in memory")


class _Told:
    """The hook that tells mixtures the modality of the tokens of a call, and takes an input of ours from the call."""

    def __init__(self, context: TokenModality, modality: Modality, model: nn.Module):
        self.context, self.modality = context, modality
        self.known = modality.input in inspect.signature(model.forward).parameters

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        keys = self._keys(args, kwargs)
        self.context.ids = None if keys is None else self.modality.of(keys)
        if not self.known:
            kwargs.pop(self.modality.input or "", None)
        return args, kwargs

    def _keys(self, args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self.modality.key == POSITION:
            tokens = ids if ids is not None else kwargs.get("inputs_embeds")
            return None if tokens is None or tokens.dim() > 3 else _positions(tokens, kwargs)  # images have no padding
        keys = ids if self.modality.key == "input_ids" else kwargs.get(self.modality.key)
        if keys is None:
            raise Unsupported(f"the call has no {self.modality.key}, which tells the modality of its tokens")
        return keys


def _positions(like: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """The position [B, S] of each token among the tokens of its sequence that are not padding; `like` is [B, S, ...]."""
    cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
    past = cache.get_seq_length() if cache is not None else 0
    total = past + like.shape[1]
    whole = torch.ones(like.shape[0], total, dtype=torch.long, device=like.device) if mask is None else mask.long()
    return (whole.cumsum(1) - 1).clamp(min=0)[:, past:]


def _replace(model: nn.Module, name: str, make: Callable[[nn.Module], nn.Module]) -> None:
    owner, _, own = name.rpartition(".")
    setattr(_module(model, owner), own, make(_module(model, name)))


def _module(model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise BadInput(f"{type(model).__name__} has no module {name}, which its plan names") from error
