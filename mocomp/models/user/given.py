"""A user's module as options give it: by its name, with example inputs in a file, and which dimensions may change."""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.lib.npyio import NpzFile
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mocomp.errors import BadInput, Usage
from mocomp.models.user.exported import open_exported
from mocomp.models.user.named import Name, made_by
from mocomp.models.user.source import ModuleSource, from_module
from mocomp.weights.headers import entries_of

SHOWN = 3


class Asked(Protocol):
    """Options that say what a module takes and gives."""

    @property
    def inputs(self) -> str: ...
    @property
    def dynamic(self) -> tuple[str, ...]: ...
    @property
    def outputs(self) -> str: ...
    @property
    def state(self) -> str: ...


def open_module(text: str, asked: Asked) -> ModuleSource:
    """The module that a source names, which runs its code. Raises BadInput for what cannot be made, or files that do not fit
    it; Usage where example inputs are missing."""
    name, arrays = Name.parsed(text), arrays_of(asked.inputs)
    if name is None:
        if asked.state:
            raise Usage("--state, and a .pt2 file has its weights in it", fix="Leave it out.")
        given = (Path(asked.inputs),) if asked.inputs else ()
        return open_exported(Path(text), arrays, dynamic_of(asked.dynamic), outputs_of(asked.outputs), given)
    module = made_by(name)
    if asked.state:
        load_state(module, Path(asked.state))
    source = from_module(module, arrays, dynamic_of(asked.dynamic), name.label, outputs_of(asked.outputs))
    files = [name.path(), *(Path(file) for file in (asked.inputs, asked.state) if file)]
    return dataclasses.replace(source, files=tuple(file for file in files if file is not None))


def arrays_of(file: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file; none without a file. Raises BadInput for what is none, and for pickled objects."""
    if not file:
        return {}
    try:
        archive = np.load(file, allow_pickle=False)
        if not isinstance(archive, NpzFile):
            raise BadInput("one array without a name", where=file, fix="Save them by name: numpy.savez(FILE, input=...).")
        with archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        no_archive = "not readable: it is no archive of arrays" if "allow_pickle" in str(error) else f"not readable: {error}"
        why = "it holds pickled objects, which run code" if "Object arrays" in str(error) else no_archive
        raise BadInput(why, where=file, fix="Save arrays of numbers by name: numpy.savez(FILE, input_ids=...).") from error


def dynamic_of(texts: Sequence[str]) -> dict[str, tuple[str | int | None, ...]]:
    """`input_ids=batch,seq` as {"input_ids": ("batch", "seq")}. Raises Usage for what cannot be meant so."""
    found: dict[str, tuple[str | int | None, ...]] = {}
    for text in texts:
        name, equals, dims = text.partition("=")
        if not name or not equals or name in found:
            raise Usage(f"--dynamic {text!r}", fix="Say INPUT=DIM,DIM once for each input, such as input_ids=batch,seq.")
        found[name] = tuple(_dimension(text, dim.strip()) for dim in dims.split(","))
    return found


def _dimension(text: str, dim: str) -> str | int | None:
    if dim in ("", "_"):
        return None
    if dim.isdecimal():
        return int(dim)
    if not dim.isidentifier():
        raise Usage(f"--dynamic {text!r}: {dim!r} is no name", fix="A name, a size, or nothing where it stays.")
    return dim


def outputs_of(text: str) -> tuple[str, ...]:
    """`a,b` as names. Raises Usage for an empty one."""
    names = tuple(name.strip() for name in text.split(",")) if text else ()
    if any(not name for name in names):
        raise Usage(f"--outputs {text!r}", fix="Say names with commas between them.")
    return names


def load_state(module: nn.Module, file: Path) -> None:
    """Fill a module from a safetensors file. Raises BadInput where names or shapes are not the module's."""
    if file.suffix != ".safetensors":
        raise BadInput("it is no .safetensors file; pickles run code when they are loaded", where=str(file))
    if not file.is_file():
        raise BadInput("no such file", where=str(file))
    entries_of(file)
    try:
        state = load_file(file)
    except SafetensorError as error:
        raise BadInput(f"not readable: {error}", where=str(file)) from error
    own = module.state_dict()
    _refuse_others(state, own, str(file))
    module.load_state_dict(state, strict=False)


def _refuse_others(state: Mapping[str, torch.Tensor], own: Mapping[str, Any], where: str) -> None:
    tensors = {name: value for name, value in own.items() if isinstance(value, torch.Tensor)}
    held = {tensors[name].data_ptr() for name in state if name in tensors and tensors[name].numel()}
    missing = [name for name, value in tensors.items() if name not in state and value.data_ptr() not in held]
    unexpected = [name for name in state if name not in tensors]
    told = [
        f"{len(names)} {words}, among them {', '.join(names[:SHOWN])}"
        for names, words in ((missing, "weights of the module are missing"), (unexpected, "are none of the module's"))
        if names
    ]
    told += [
        f"{name} is {list(state[name].shape)}, expected {list(value.shape)}"
        for name, value in tensors.items()
        if name in state and state[name].shape != value.shape
    ][:SHOWN]
    told += _untied(state, tensors)
    if told:
        raise BadInput("; ".join(told), where=where, fix="Save module.state_dict() of that module.")


def _untied(state: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> list[str]:
    """What is told of weights that are one in the module and two in the file: one of them would be lost."""
    first: dict[int, str] = {}
    told = []
    for name in (name for name in state if name in own and own[name].numel()):
        other = first.setdefault(own[name].data_ptr(), name)
        same_shape = state[other].shape == state[name].shape
        if other != name and same_shape and not torch.equal(state[other], state[name]):
            told.append(f"{other} and {name} are one weight of the module, and differ")
    return told[:SHOWN]
