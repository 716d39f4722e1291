"""Which layers of a model are alike: the same classes, with parameters of the same shapes and with the same settings."""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mocomp.ir.repetition import Run, longest_run

OWN_NUMBER = ("layer_idx", "layer_id", "layer_index", "layer_number", "layer_num")
"""What classes call the number of their layer, which is all that alike layers may differ in."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)


@dataclass(frozen=True)
class Stack:
    """A list of layers of a model, by its name, and the run of alike ones in it."""

    name: str
    run: Run


def repeated(model: nn.Module) -> list[Stack]:
    """The stacks of a model in which layers repeat often enough that some need not be traced."""
    found = []
    for name, layers in _outermost(model):
        if _share_parameters(layers):
            continue
        run = longest_run([kind(layer, i) for i, layer in enumerate(layers)])
        found += [Stack(name, run)] if run is not None else []
    return found


def kind(layer: nn.Module, number: int) -> Hashable:
    """All that decides what a layer computes but its weights, to be compared with that of others of the same model.

    What is not known to mean the same when it looks the same, such as an object of some class, is like itself only.
    """
    paths = {id(module): path for path, module in layer.named_modules()}
    return tuple((path, type(module), _settings(module, number, paths)) for path, module in layer.named_modules())


def _outermost(model: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    inside: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not name.startswith(inside or ("\0",)):
            inside += (f"{name}.",)
            yield name, module


def _share_parameters(layers: nn.ModuleList) -> bool:
    owned = [id(tensor) for layer in layers for tensor in layer.parameters()]
    return len(owned) != len(set(owned)) or len({id(layer) for layer in layers}) != len(layers)


def _settings(module: nn.Module, number: int, paths: dict[int, str]) -> Hashable:
    tensors = tuple((name, _tensor(tensor)) for name, tensor in (*module._parameters.items(), *module._buffers.items()))
    rest = {name: value for name, value in vars(module).items() if name not in ("_parameters", "_buffers", "_modules")}
    return tensors, tuple((name, _value(name, value, number, paths)) for name, value in sorted(rest.items()))


def _value(name: str, value: Any, number: int, paths: dict[int, str]) -> Hashable:
    if name in OWN_NUMBER and type(value) is int:
        return "number", value - number
    if isinstance(value, PLAIN):
        return type(value), repr(value)
    if isinstance(value, dict):
        return type(value), tuple((str(key), _value("", inner, number, paths)) for key, inner in value.items())
    if isinstance(value, (list, tuple)):
        return type(value), tuple(_value("", inner, number, paths) for inner in value)
    if isinstance(value, (set, frozenset)):
        return type(value), tuple(sorted(map(repr, value)))
    if isinstance(value, types.MethodType) and id(value.__self__) in paths:
        return "method", id(value.__func__), paths[id(value.__self__)]
    return _tensor(value) if isinstance(value, torch.Tensor) else ("object", id(value))


def _tensor(tensor: torch.Tensor | None) -> Hashable:
    if tensor is None:
        return None
    described = (tuple(tensor.shape), tensor.dtype, isinstance(tensor, nn.Parameter))
    if tensor.is_meta:
        return described
    return *described, tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
