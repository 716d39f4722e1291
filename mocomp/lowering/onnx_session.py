"""model.onnx and model.onnx.data: written from recipes, read back, and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mocomp.errors import BadInput
from mocomp.weights.recipes import Recipe
from mocomp.weights.writer import Placed

MODEL, DATA = "model.onnx", "model.onnx.data"


def missing_runtime() -> str | None:
    """Why ONNX Runtime cannot be used here, with the command that helps; None when it can."""
    try:
        import onnxruntime  # noqa: F401
    except ImportError:
        return "onnxruntime is not installed: pip install onnxruntime"
    return None


class Session:
    """An ONNX Runtime session of the artifact in `directory`, or of a `changed` copy of its graph on the same weights.

    Raises BadInput for what is no artifact, or damaged.
    """

    def __init__(self, directory: Path, changed: bytes | None = None):
        _refuse_absent(directory)
        self.session = session(changed or str(directory / MODEL), directory)
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name."""
        fed = {name: inputs[name] for name in self.inputs}
        return dict(zip(self.outputs, self.session.run(None, fed), strict=True))


def session(source: str | bytes, directory: Path) -> Any:
    """A session of a file, or of a model in memory whose weights lie in `directory`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if isinstance(source, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BadInput(
            f"ONNX Runtime does not load it: {str(error).splitlines()[0][:300]}",
            where=str(directory),
            fix="If the directory was changed after mocomp wrote it, convert again.",
        ) from error


def save(model: ir.Model, directory: Path, weights: dict[str, Recipe], placed: dict[str, Placed]) -> None:
    """Write the graph, its weights where they were placed in DATA; an initializer says itself what its bytes mean."""
    for name, recipe in weights.items():
        value, at = model.graph.initializers[name], placed.get(name)
        offset, length = (at.offset, at.length) if at else (0, recipe.nbytes)
        assert value.dtype is not None and value.shape is not None
        value.const_value = ir.ExternalTensor(
            DATA, offset, length, value.dtype, shape=value.shape, name=name, base_dir=directory
        )
    ir.save(model, directory / MODEL)


def load(directory: Path) -> ir.Model:
    """The graph without its weights. Raises BadInput when it is not there or cannot be read."""
    _refuse_absent(directory)
    try:
        return ir.load(directory / MODEL)
    except Exception as error:  # of protobuf's own kinds
        raise BadInput(f"{MODEL} is damaged: {error}", where=str(directory), fix="Convert again.") from error


def replace(model: ir.Model, directory: Path) -> None:
    """Write a changed graph over that of the artifact in `directory`; its weights stay where they are."""
    beside = directory / f".{MODEL}.new"
    beside.write_bytes(ir.to_proto(model).SerializeToString())
    beside.replace(directory / MODEL)


def exposing(model: ir.Model, names: list[str]) -> bytes:
    """The model with these inner values, which are float, among its outputs."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        value = values[name]
        value.dtype = value.dtype or ir.DataType.FLOAT
        if not value.is_graph_output():
            model.graph.outputs.append(value)
    return ir.to_proto(model).SerializeToString()


def _refuse_absent(directory: Path) -> None:
    if not (directory / MODEL).exists():
        raise BadInput(f"no {MODEL}", where=str(directory), fix="Point at a directory that mocomp convert wrote.")
