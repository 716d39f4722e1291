"""The front end for transformers: a checkpoint directory becomes a program, with no weight in memory.

The model is built on the meta device, its experts and attention are replaced through the interfaces that
transformers has for that, and the result is traced on fake tensors. Nothing of transformers is patched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mocomp.errors import BadInput, MocompError, Unsupported
from mocomp.ir.program import Program
from mocomp.ir.specs import spell
from mocomp.models import attention, canonical, modality_blocks
from mocomp.models.interface import MODALITY, Interface, interface_of
from mocomp.models.modality_blocks import mixtures
from mocomp.models.repetition.alike import Stack, repeated
from mocomp.models.repetition.numbers import watched
from mocomp.models.repetition.skipped import skipped
from mocomp.models.repetition.stamped import stamp
from mocomp.models.source import Source
from mocomp.plans.plan import ModelPlan
from mocomp.weights.recipes import literal

TRACED = {"batch": 2, "sequence": 5, "past": 7}
"""Sizes of the example input: no 0 or 1, which a trace would take for constants, and no two alike."""
LARGEST_BUFFER = 1 << 29
"""Bytes of a tensor that is computed from sizes in the config alone, such as a table of angles."""


@dataclass
class Traced:
    """A traced model before its weights are bound: the program, the model on fake tensors, what goes in and out."""

    program: Program
    model: Any
    interface: Interface
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def build(source: Source) -> Any:
    """The model on the meta device, in float32, with canonical experts and attention; its computed buffers are real.

    Raises Unsupported when a layer's experts cannot be proven equal to `mocomp::experts`.
    """
    from transformers.initialization import meta_device_safe_creation_ops

    attention.register()
    canonical.register()
    config = copy.deepcopy(source.config)  # what is written of it later is what the source says
    for part in (config, config.get_text_config()):
        part.use_cache = True
        for flag in ("output_router_logits", "output_attentions", "output_hidden_states"):
            if getattr(part, flag, False):
                setattr(part, flag, False)
    with torch.device("meta"), meta_device_safe_creation_ops(), described_by_config(source):
        model = source.model_class._from_config(
            config, dtype=torch.float32, attn_implementation=attention.NAME, experts_implementation=canonical.NAME
        )
    compute_buffers(model)
    _prove_experts(model)
    return model.eval()


@contextmanager
def described_by_config(source: Source) -> Iterator[None]:
    """While inside, whatever a class of transformers objects to in its config is raised as BadInput."""
    try:
        yield
    except MocompError:
        raise
    except Exception as error:
        raise BadInput(
            f"{source.model_class.__name__} cannot be built by it: {type(error).__name__}: {str(error)[:300]}",
            where=str(source.directory / "config.json"),
            fix="Correct the field that it speaks of.",
        ) from error


def trace(model: Any, plan: ModelPlan | None = None) -> Traced:
    """The model's graph, with batch, sequence and past symbolic, and with the input that a plan wants besides.

    Raises Unsupported for what torch.export refuses.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _parameters_as(model, _fake):
        interface = interface_of(model)
    program = _trace(model, interface)
    nodes = zip(interface.inputs, program.user_inputs(), strict=True)
    idle = [name for name, node in nodes if name in MODALITY and not node.users]
    if idle:  # taken for the positions of images, of which there are none
        interface = interface.without(idle)
    if idle or interface.with_plan(plan) != interface:
        interface = interface.with_plan(plan)
        program = _trace(model, interface)
    outputs = program.graph.output_node().args[0]
    if len(outputs) != len(interface.outputs):
        raise Unsupported(f"the trace has {len(outputs)} outputs, the model {len(interface.outputs)}: {interface.outputs}")
    return Traced(program, model, interface)


def _trace(model: Any, interface: Interface) -> Program:
    """The graph of the model: of a few of the layers that repeat, where that is known to be enough, else of all."""
    stacks: list[Stack] = []
    with suppress(Exception):  # whatever cannot be compared is like nothing else
        stacks = repeated(model)
    if stacks:
        with suppress(Unsupported), skipped(model, stacks), watched(model, stacks) as uses:
            program = _traced_whole(model, interface)
            if not uses and all(stamp(program, stack) for stack in stacks):
                return program
    return _traced_whole(model, interface)


def _traced_whole(model: Any, interface: Interface) -> Program:
    with _parameters_as(model, _hollow):
        exported = _export(model, interface)
    constants = {name: literal(value) for name, value in exported.constants.items() if isinstance(value, torch.Tensor)}
    return Program(exported, constants, interface.inputs, interface.outputs, interface.axes)


def _export(model: Any, interface: Interface) -> torch.export.ExportedProgram:
    from transformers.exporters.configs import DynamoConfig
    from transformers.exporters.exporter_dynamo import DynamoExporter

    made = interface.tensors(**TRACED)
    inputs: dict[str, Any] = {name: value for name, value in made.items() if not name.startswith("past_key_values")}
    axes: dict[str, Any] = {name: _dynamic(interface, name) for name in inputs}
    if interface.past:
        inputs["past_key_values"] = _cache(model, interface, made)
        axes["past_key_values"] = [_dynamic(interface, name) for name in made if name.startswith("past_key_values")]
    try:
        with torch.no_grad(), _without(model, tuple(interface.added)):
            exported = DynamoExporter().export(model, inputs, DynamoConfig(dynamic=True, dynamic_shapes=axes))
    except Exception as error:
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise Unsupported(
            f"torch.export cannot trace it: {type(error).__name__}: {first}",
            where=type(model).__name__,
            fix="The whole message is in the log.",
        ) from error
    program: Any = getattr(exported, "program", exported)  # newer versions of transformers wrap it
    return program


@contextmanager
def _without(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """While inside, the model's forward is not given these inputs, which are in its trace all the same."""

    def drop(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {name: value for name, value in kwargs.items() if name not in names}

    hook = model.register_forward_pre_hook(drop, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _dynamic(interface: Interface, name: str) -> dict[int, Any]:
    return dict.fromkeys(interface.axes[name], torch.export.Dim.AUTO)


def _cache(model: Any, interface: Interface, made: dict[str, torch.Tensor]) -> Any:
    """A DynamicCache of fake tensors whose leaves stand in the order in which the interface names them."""
    from torch.utils._pytree import tree_flatten
    from transformers import DynamicCache
    from transformers.exporters.exporter_dynamo import register_cache_pytrees_for_model

    cache = DynamicCache()  # plain layers: a window of attention is in the masks, not in a cache that forgets
    for i in range(len(interface.past)):
        cache.update(made[f"past_key_values.{i}.key"], made[f"past_key_values.{i}.value"], i)
    register_cache_pytrees_for_model(model)
    leaves = [leaf for leaf in tree_flatten(cache)[0] if isinstance(leaf, torch.Tensor)]
    expected = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    if len(leaves) != len(expected) or any(a is not b for a, b in zip(leaves, expected, strict=True)):
        raise Unsupported("its cache holds more than keys and values, layer by layer", where=model.config.model_type)
    return cache


@contextmanager
def _parameters_as(model: nn.Module, make: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """What `make` gives in place of each tensor of the meta device while inside; ties are kept."""
    made: dict[int, Any] = {}
    restore: list[tuple[dict, str, Any]] = []
    for module in model.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is None or not tensor.is_meta:
                    continue
                if id(tensor) not in made:
                    new = make(tensor)
                    made[id(tensor)] = nn.Parameter(new, requires_grad=False) if isinstance(tensor, nn.Parameter) else new
                restore.append((store, name, tensor))
                store[name] = made[id(tensor)]
    try:
        yield
    finally:
        for store, name, tensor in restore:
            store[name] = tensor


def _fake(tensor: torch.Tensor) -> torch.Tensor:
    """Inside a fake mode: the tensor's shape and type on the CPU, without data."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")


def _hollow(tensor: torch.Tensor) -> torch.Tensor:
    """A real tensor of that shape with the memory of one element.

    Exporting under a fake mode of our own corrupts the heap in torch 2.13 (docs/decisions/0002), so torch.export is
    handed tensors that it can turn into fake ones itself.
    """
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def compute_buffers(model: Any) -> None:
    """Real values for the buffers that no checkpoint holds, computed by transformers as it does when it loads."""
    for module in model.modules():
        for name in module._non_persistent_buffers_set:
            buffer = module._buffers.get(name)
            if buffer is not None and buffer.is_meta:
                if buffer.nbytes > LARGEST_BUFFER:
                    raise Unsupported(f"buffer {name} {list(buffer.shape)} is in no checkpoint, and too large to compute")
                module._buffers[name] = torch.full(
                    buffer.shape, float("nan") if buffer.is_floating_point() else -1, dtype=buffer.dtype
                )
    model.initialize_weights()
    for name, buffer in model.named_buffers():
        if not buffer.is_meta and buffer.is_floating_point() and buffer.isnan().any():
            raise Unsupported(f"buffer {name} is in no checkpoint, and transformers does not say how to compute it")


def _prove_experts(model: nn.Module) -> None:
    """Mark every experts module with its kind, and give blocks of several pools the forward of one mixture."""
    proven: dict[tuple, Any] = {}
    for name, stack in mixtures(model).items():
        module = model.get_submodule(name)
        key = (type(module), *(tuple(p.shape) for p in module.parameters()))
        is_block = len(stack) > 1
        if key not in proven:
            proven[key] = modality_blocks.prove(module, name) if is_block else canonical.prove(module, name)
        if is_block:
            modality_blocks.install(module, *proven[key])
        else:
            module.mocomp_spec = spell(proven[key])  # type: ignore[assignment]
