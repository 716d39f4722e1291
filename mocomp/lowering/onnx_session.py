"""model.onnx and model.onnx.data: written from recipes, read back, and run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from mocomp.errors import BadInput, MissingDependency
from mocomp.lowering.cuda_session import PROVIDER, BoundSession, missing_cuda, providers
from mocomp.lowering.device_values import as_float32, fitting
from mocomp.lowering.external_data import refuse_foreign_data
from mocomp.weights import disk
from mocomp.weights.recipes import Recipe
from mocomp.weights.writer import Placed

MODEL, DATA = "model.onnx", "model.onnx.data"


def missing_runtime(device: str = "cpu") -> str | None:
    """Why ONNX Runtime cannot be used here, on `device`, with the command that helps; None when it can."""
    try:
        import onnxruntime
    except ImportError:
        return f"onnxruntime is not installed: pip install onnxruntime{'' if device == 'cpu' else '-gpu[cuda,cudnn]'}"
    return missing_cuda(onnxruntime) if device == "cuda" else None


class Session:
    """An ONNX Runtime session of the artifact in `directory`, or of a `changed` copy of its graph on the same weights.

    Raises BadInput for what is no artifact, or damaged.
    """

    def __init__(self, directory: Path, changed: bytes | None = None, device: str = "cpu", tf32: bool = False):
        _refuse_absent(directory)
        opened = session(changed or str(directory / MODEL), directory, device, tf32=tf32)
        self.inputs = [value.name for value in opened.get_inputs()]
        self._run = runs(opened, device)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name; 16-bit floats as float32."""
        return self._run(inputs)


def runs(opened: Any, device: str) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """What gives all outputs of a session by name, for inputs by name, of whose floats it makes what the session takes."""
    if device != "cpu":
        return BoundSession(opened, device).run
    types = {value.name: value.type for value in opened.get_inputs()}
    names = [value.name for value in opened.get_outputs()]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = opened.run(None, {name: fitting(inputs[name], kind) for name, kind in types.items()})
        return {name: as_float32(array) for name, array in zip(names, found, strict=True)}

    return run


def session(
    source: str | bytes,
    directory: Path,
    device: str = "cpu",
    graphs: bool = False,
    profile: str = "",
    tf32: bool = False,
    lean: bool = False,
) -> Any:
    """A session of a file, or of a model in memory whose weights lie in `directory`, on `device`, cpu or cuda.

    `graphs` has CUDA record its kernels, `tf32` round float32 products; with `profile` it writes what it ran to a file whose
    name begins so; `lean` spares memory and not time: weights are not copied for kernels that like another layout.
    Raises BadInput, and MissingDependency where CUDA's libraries cannot be loaded.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    if lean:
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    if isinstance(source, bytes):
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(directory))
    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # the libraries that pip or torch brought, which the loader would not find
    try:
        left_out = {"disabled_optimizers": ["ConstantFolding"]} if lean else {}
        opened = onnxruntime.InferenceSession(source, options, providers=providers(device, graphs, tf32), **left_out)
    except Exception as error:
        raise BadInput(
            f"ONNX Runtime does not load it: {str(error).splitlines()[0][:300]}",
            where=str(directory),
            fix="If the directory was changed after mocomp wrote it, convert again.",
        ) from error
    if device == "cuda" and PROVIDER not in opened.get_providers():
        raise MissingDependency(
            "ONNX Runtime could not load its CUDA provider, and took the CPU instead",
            where=str(directory),
            fix="pip install onnxruntime-gpu[cuda,cudnn], for the CUDA version of this machine's driver",
        )
    return opened


def save(model: ir.Model, directory: Path, weights: dict[str, Recipe], placed: dict[str, Placed], file: str = MODEL) -> None:
    """Write the graph to `file`, its weights where they were placed, in DATA or a file that is linked; an initializer says
    itself what its bytes mean."""
    for name, recipe in weights.items():
        value, at = model.graph.initializers[name], placed.get(name)
        offset, length, place = (at.offset, at.length, at.file or DATA) if at else (0, recipe.nbytes, DATA)
        assert value.dtype is not None and value.shape is not None
        value.const_value = ir.ExternalTensor(
            place, offset, length, value.dtype, shape=value.shape, name=name, base_dir=directory
        )
    disk.write_bytes(directory / file, ir.to_proto(model).SerializeToString())


def load(directory: Path, file: str = MODEL) -> ir.Model:
    """The graph without its weights. Raises BadInput when it is not there or cannot be read."""
    _refuse_absent(directory, file)
    try:
        return ir.load(directory / file)
    except Exception as error:  # of protobuf's own kinds
        raise BadInput(f"{file} is damaged: {error}", where=str(directory), fix="Convert again.") from error


def replace(model: ir.Model, directory: Path) -> None:
    """Write a changed graph over that of the artifact in `directory`; its weights stay where they are."""
    disk.replace_bytes(directory / MODEL, ir.to_proto(model).SerializeToString())


def exposing(model: ir.Model, names: list[str]) -> bytes:
    """The model with these inner values, which are float, among its outputs."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        value = values[name]
        value.dtype = value.dtype or ir.DataType.FLOAT
        if not value.is_graph_output():
            model.graph.outputs.append(value)
    return ir.to_proto(model).SerializeToString()


def _refuse_absent(directory: Path, file: str = MODEL) -> None:
    if not (directory / file).exists():
        raise BadInput(f"no {file}", where=str(directory), fix="Point at a directory that mocomp convert wrote.")
    refuse_foreign_data(directory / file)
