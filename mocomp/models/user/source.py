"""A module in memory as a source: what it takes, by name and example, and which of the dimensions may change."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mocomp.errors import BadInput, Unsupported, Usage
from mocomp.models.source import Source

Dynamic = Mapping[str, Sequence[str | int | None]]
"""For an input by its name what each of its dimensions is: a name where it may change, else its size, or None."""
TAKEN = (torch.float32, torch.int64, torch.int32, torch.bool)
"""Types of inputs that are kept; other floats become float32."""


class NoConfig:
    """What a module has in place of a config."""

    model_type = "module"

    def get_text_config(self) -> NoConfig:
        """Itself: it tells nothing of texts either."""
        return self


@dataclass(frozen=True, eq=False)
class ModuleSource(Source):
    """A module at inference, in float32, with example `inputs`; `axes` names their dimensions that may change. `outputs` are
    the names that were asked for, `label` is what to call it, `files` are those that it was made of."""

    module: nn.Module = field(kw_only=True)
    inputs: dict[str, Tensor] = field(kw_only=True)
    axes: dict[str, dict[int, str]] = field(kw_only=True)
    outputs: tuple[str, ...] = ()
    label: str = ""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return self.label

    @property
    def files_to_carry(self) -> list[Path]:
        """None: a module brings no tokenizer."""
        return []

    @property
    def sizes(self) -> dict[str, int]:
        """The size of each dimension that may change, in the example."""
        return {axis: self.inputs[name].shape[i] for name, axes in self.axes.items() for i, axis in axes.items()}

    def with_module(self, module: nn.Module) -> ModuleSource:
        """The same with another module in its place."""
        return dataclasses.replace(self, module=module)

    def file_sizes(self) -> dict[str, int]:
        """The files that it was made of, with their lengths in bytes, for the report."""
        return {str(file.resolve()): file.stat().st_size for file in self.files}


def from_module(
    module: nn.Module,
    inputs: Mapping[str, np.ndarray | Tensor],
    dynamic: Dynamic | None = None,
    name: str = "",
    outputs: Sequence[str] = (),
) -> ModuleSource:
    """A module as a source for `mocomp.convert`; it is left as it is.

    `inputs` holds an example for each argument of its forward that is to be an input, `dynamic` names dimensions that may
    change: {"input_ids": ("batch", "seq")}. The same name is the same size, in whichever input.
    Raises BadInput for inputs that it does not take, and Usage for dimensions that they have not.
    """
    if not isinstance(module, nn.Module):
        raise BadInput(f"it is a {type(module).__name__}, expected an nn.Module", where=name)
    label = name or type(module).__name__
    own = at_inference(module, label)
    examples = {key: _example(key, value) for key, value in inputs.items()}
    examples = _in_order(own, examples, label)
    axes = axes_of(examples, dynamic or {})
    kept = {"module": own, "inputs": examples, "axes": axes, "outputs": tuple(outputs), "label": label}
    return ModuleSource(Path.cwd(), NoConfig(), type(module), **kept)


def at_inference(module: nn.Module, where: str) -> nn.Module:
    """The module itself where it computes in float32 and does not train, else a copy that does. Raises Unsupported for a part
    that cannot be told to stop training, BadInput for weights that are no finite numbers."""
    state = [*module.parameters(), *module.buffers()]
    if any(tensor.is_meta for tensor in state):
        raise BadInput("it has parameters on the meta device, which hold no numbers", where=where)
    odd = any((tensor.is_floating_point() and tensor.dtype != torch.float32) or not tensor.is_cpu for tensor in state)
    if odd or any(part.training for part in module.modules()):
        module = _copied(module, where).to(device="cpu", dtype=torch.float32).eval()
    stubborn = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if stubborn:
        raise Unsupported(f"{', '.join(stubborn[:4])} still trains after .eval()", where=where)
    for name, parameter in module.named_parameters():
        if not torch.isfinite(parameter).all():
            raise BadInput(f"parameter {name} holds NaN or infinity", where=where)
    return module


def _copied(module: nn.Module, where: str) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except Exception as error:
        raise BadInput(
            f"it trains, or is not in float32, and cannot be copied: {type(error).__name__}: {str(error)[:200]}",
            where=where,
            fix="Call .float().eval() on it yourself.",
        ) from error


def _example(name: str, value: Any) -> Tensor:
    if not isinstance(value, np.ndarray | Tensor):
        raise BadInput(f"input {name} is a {type(value).__name__}, expected an array or a tensor")
    try:
        tensor = torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value.detach().cpu().clone()
    except TypeError as error:
        raise BadInput(f"input {name} holds {value.dtype}, which torch has no type for") from error
    if tensor.is_floating_point():
        tensor = tensor.to(torch.float32)
    if tensor.dtype not in TAKEN:
        told = ", ".join(str(dtype).removeprefix("torch.") for dtype in TAKEN)
        raise BadInput(f"input {name} is {str(tensor.dtype).removeprefix('torch.')}, expected one of {told}")
    if tensor.numel() == 0:
        raise BadInput(f"input {name} is {list(tensor.shape)}, and an example of nothing shows nothing")
    return tensor.contiguous()


def _in_order(module: nn.Module, examples: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """The inputs in the order of forward's arguments. Raises BadInput for those that it does not know, or lacks."""
    parameters = inspect.signature(module.forward).parameters.values()
    kinds = inspect.Parameter
    named = [p.name for p in parameters if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    if any(p.kind is kinds.POSITIONAL_ONLY for p in parameters):
        raise Unsupported("its forward has arguments without a name", where=where, fix="Wrap it in a module that names them.")
    takes = f"forward takes {', '.join(named) or 'no named arguments'}"
    if not examples:
        raise Usage("no inputs are given", where=where, fix=f"{takes}: --inputs FILE.npz holds an array by each name.")
    if not any(p.kind is kinds.VAR_KEYWORD for p in parameters) and (unknown := [n for n in examples if n not in named]):
        raise BadInput(f"forward does not know input {unknown[0]}", where=where, fix=f"{takes}.")
    needed = [p.name for p in parameters if p.default is kinds.empty and p.name in named]
    if absent := [name for name in needed if name not in examples]:
        raise BadInput(f"forward needs input {absent[0]}, and it is not given", where=where, fix=f"{takes}.")
    return {name: examples[name] for name in [*(n for n in named if n in examples), *(n for n in examples if n not in named)]}


def axes_of(examples: Mapping[str, Tensor], dynamic: Dynamic) -> dict[str, dict[int, str]]:
    """{input: {dimension: name}} of what may change. Raises Usage for what the examples have not, or not alike."""
    axes: dict[str, dict[int, str]] = {name: {} for name in examples}
    sizes: dict[str, tuple[int, str]] = {}
    for name, dims in dynamic.items():
        if name not in examples:
            raise Usage(f"--dynamic {name}, and the inputs are {', '.join(examples)}")
        shape = list(examples[name].shape)
        if len(dims) != len(shape):
            raise Usage(f"--dynamic {name} names {len(dims)} dimensions, and the example is {shape}")
        for i, dim in enumerate(dims):
            if isinstance(dim, str):
                axes[name][i] = dim
                known, where = sizes.setdefault(dim, (shape[i], name))
                if known != shape[i]:
                    raise Usage(f"--dynamic {dim} is {known} in {where} and {shape[i]} in {name}", fix="Give two names.")
            elif dim is not None and dim != shape[i]:
                raise Usage(f"--dynamic {name}: dimension {i} is said to be {dim}, and is {shape[i]} in the example")
    return axes
