"""A .pt2 file of torch.export as a module: with its submodules, its inputs by name, and its dimensions that may change."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, unflatten
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument
from torch.export.pt2_archive._package import load_pt2
from torch.utils._pytree import tree_flatten, tree_unflatten

from mocomp.errors import BadInput, Unsupported
from mocomp.models.user.archive import FIX, refuse_unsafe
from mocomp.models.user.running import first_line
from mocomp.models.user.source import Dynamic, ModuleSource, from_module

DRAWN = (3, 5, 7, 11, 13)
"""Sizes of dimensions, where an archive has no example."""


class Exported(nn.Module):
    """An exported program that takes its tensors by name; `of` makes one, whose forward has these names."""

    def __init__(self, program: ExportedProgram):
        super().__init__()
        self.exported = _as_module(program)
        self.leaves = _leaves(program)
        self.spec = program.call_spec.in_spec
        for part in self.modules():  # what it does is fixed, and some of it refuses to be told
            part.training = False

    @classmethod
    def of(cls, program: ExportedProgram) -> Exported:
        """A program as a module, with its submodules as they were exported."""

        def forward(self: Exported, **inputs: Tensor) -> Any:
            return self.called(inputs)

        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = ["self", *_values(program)]
        forward.__signature__ = inspect.Signature([inspect.Parameter(name, kind) for name in names])  # type: ignore[attr-defined]
        return type(cls.__name__, (cls,), {"forward": forward})(program)

    def called(self, inputs: Mapping[str, Tensor]) -> Any:
        """What it gives; numbers and None among its arguments are as they were when it was exported."""
        leaves = [inputs[leaf.name] if isinstance(leaf, TensorArgument) else leaf.value for leaf in self.leaves]
        args, kwargs = tree_unflatten(leaves, self.spec)  # type: ignore[arg-type]
        return self.exported(*args, **kwargs)


def open_exported(
    path: Path, arrays: Mapping[str, np.ndarray], dynamic: Dynamic, outputs: tuple[str, ...], files: tuple[Path, ...]
) -> ModuleSource:
    """A .pt2 file as a source; `arrays` are example inputs in place of its own, `dynamic` other names of its dimensions.

    Raises BadInput for a file that is damaged or not allowed, and for inputs that are not its own.
    """
    if not path.is_file():
        raise BadInput("no such file", where=str(path))
    program = _loaded(path)
    values = _values(program)
    if unknown := [name for name in arrays if name not in values]:
        raise BadInput(f"it has no input {unknown[0]}", where=str(path), fix=f"It takes {', '.join(values)}.")
    if absent := [name for name in values if arrays and name not in arrays]:
        raise BadInput(f"it needs input {absent[0]}, and it is not given", where=str(path))
    examples = dict(arrays) or _examples(program, values)
    axes = {name: _dimensions(value) for name, value in values.items() if value.dim()} | dict(dynamic)
    source = from_module(Exported.of(program), examples, axes, str(path.resolve()), outputs)
    return dataclasses.replace(source, files=(path, *files))


def _loaded(path: Path) -> ExportedProgram:
    refuse_unsafe(path)
    try:
        programs = load_pt2(str(path)).exported_programs
    except Exception as error:
        raise BadInput(f"torch.export cannot read it: {first_line(error)}", where=str(path), fix=FIX) from error
    if len(programs) != 1:
        raise BadInput(f"it holds {len(programs)} programs, expected one", where=str(path), fix=FIX)
    return next(iter(programs.values()))


TRACED = ("val", "tensor_meta", "example_value")
"""What a trace notes of each value."""


def _as_module(program: ExportedProgram) -> nn.Module:
    """Its modules as they were, or where they cannot be had, one flat module."""
    try:
        module = unflatten(program)
    except Exception:
        program._guards_code = []  # text of Python, which would be run
        return program.module()
    for part in module.modules():
        for node in getattr(getattr(part, "graph", None), "nodes", ()):
            for key in TRACED:  # stand-ins of sizes that may change, which cannot be copied
                node.meta.pop(key, None)
    return module


def _leaves(program: ExportedProgram) -> list[TensorArgument | ConstantArgument]:
    found = []
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            if not isinstance(spec.arg, TensorArgument | ConstantArgument):
                raise Unsupported(f"its input {spec.arg.name} is a number that may change", fix="Export it with a tensor.")
            found.append(spec.arg)
    return found


def _values(program: ExportedProgram) -> dict[str, Tensor]:
    """What the program knows of each input that is a tensor."""
    nodes = {node.name: node for node in program.graph.find_nodes(op="placeholder")}
    return {leaf.name: nodes[leaf.name].meta["val"] for leaf in _leaves(program) if isinstance(leaf, TensorArgument)}


def _dimensions(value: Tensor) -> tuple[str | int | None, ...]:
    """The symbol of each dimension that may change; torch.export does not keep the names that they were given."""
    return tuple(str(size.node.expr) if isinstance(size, torch.SymInt) else None for size in value.shape)


def _examples(program: ExportedProgram, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The archive's own example inputs, or drawn ones: floats are normal, whole numbers 0 or 1."""
    if program.example_inputs:
        leaves = tree_flatten(program.example_inputs)[0]
        pairs = zip(_leaves(program), leaves, strict=True)
        return {leaf.name: value for leaf, value in pairs if isinstance(leaf, TensorArgument)}
    symbols = sorted({str(size) for value in values.values() for size in value.shape if isinstance(size, torch.SymInt)})
    sizes = dict(zip(symbols, DRAWN, strict=False))
    generator = torch.Generator().manual_seed(0)
    made = {}
    for name, value in values.items():
        shape = [sizes.get(str(size), DRAWN[-1]) if isinstance(size, torch.SymInt) else size for size in value.shape]
        drawn = torch.randn(shape, generator=generator)
        made[name] = drawn if value.is_floating_point() else (drawn > 0).to(value.dtype)
    return made
