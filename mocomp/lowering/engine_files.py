"""The files that TensorRT leaves in an artifact: plans, and a model repository for Triton."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from mocomp import terminal
from mocomp.deployment import Engine
from mocomp.lowering import triton
from mocomp.lowering.engine import Part, build
from mocomp.lowering.onnx_session import load
from mocomp.lowering.profiles import dims_of
from mocomp.lowering.tensorrt_graphs import PROFILES
from mocomp.weights import disk


def build_all(directory: Path, parts: Sequence[Part], engine: Engine) -> list[str]:
    """Build the engine of each part, beside its graph; the names of the plans."""
    for part in parts:
        model = load(directory, part.graph)
        _remember(directory, part, model)
        with terminal.phase(f"building {part.plan}"):
            dims = dims_of(model.graph.inputs)
            build(directory / part.graph, directory / part.plan, part.profiles, dims, engine, watched(model))
    return [part.plan for part in parts]


def for_triton(directory: Path, parts: Sequence[Part]) -> list[str]:
    """A model of Triton for each part, with its plan where that is built; their files. They are called `model` and, that for
    single tokens, `decode`."""
    files = []
    for part in parts:
        name = part.graph.removesuffix(".onnx")
        files += triton.write(directory, name, load(directory, part.graph), len(part.profiles), directory / part.plan)
    return files


def watched(model: ir.Model) -> list[str]:
    """The values that tell which experts are chosen, which an engine has to be built to show."""
    routes = [node for node in model.graph if node.op_type.startswith("Route")]
    values = [value for node in routes for value in node.outputs]
    return [str(value.name) for value in values if str(value.name).endswith(("/ids", "/scores"))]


def _remember(directory: Path, part: Part, model: ir.Model) -> None:
    """Write into a graph what it is built for, where that has changed."""
    texts = ";".join(profile.text for profile in part.profiles)
    if model.metadata_props.get(PROFILES) == texts:
        return
    model.metadata_props[PROFILES] = texts
    disk.replace_bytes(directory / part.graph, ir.to_proto(model).SerializeToString())
