"""A model repository of Triton Inference Server for a TensorRT engine: config.pbtxt and the plan.

Fields are those of ModelConfig in Triton's model_config.proto. The engine's own dimensions are the server's: max_batch_size
is 0, so that no batch dimension is put before them, since a cache and its mask belong to one call.
"""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from mocomp.errors import Unsupported
from mocomp.lowering.profiles import dims_of
from mocomp.weights import disk

FOLDER = "triton"
TYPES = {
    ir.DataType.FLOAT: "TYPE_FP32",
    ir.DataType.FLOAT16: "TYPE_FP16",
    ir.DataType.BFLOAT16: "TYPE_BF16",
    ir.DataType.INT64: "TYPE_INT64",
    ir.DataType.INT32: "TYPE_INT32",
    ir.DataType.BOOL: "TYPE_BOOL",
}


def config(name: str, model: ir.Model, profiles: int) -> str:
    """The text of config.pbtxt for the engine of `model`, with all of its profiles. Raises Unsupported for a type that the
    server has not."""
    inputs = "".join(_tensor("input", value) for value in model.graph.inputs)
    outputs = "".join(_tensor("output", value) for value in model.graph.outputs)
    chosen = ", ".join(f'"{i}"' for i in range(profiles))
    return (
        f'name: "{name}"\nplatform: "tensorrt_plan"\nmax_batch_size: 0\n{inputs}{outputs}'
        f"instance_group {{\n  count: 1\n  kind: KIND_GPU\n  profile: [ {chosen} ]\n}}\n"
    )


def write(directory: Path, name: str, model: ir.Model, profiles: int, plan: Path) -> list[str]:
    """`triton/NAME/config.pbtxt` in `directory`, and `1/model.plan` once there is a plan; the files, as paths in it."""
    place = directory / FOLDER / name
    disk.make_directory(place / "1")
    disk.write_text(place / "config.pbtxt", config(name, model, profiles))
    if not plan.exists():
        return [f"{FOLDER}/{name}/config.pbtxt"]
    served = place / "1" / "model.plan"
    disk.remove(served, absent=True)
    disk.link_or_copy(plan, served)  # a plan holds all weights
    return [f"{FOLDER}/{name}/{file}" for file in ("config.pbtxt", "1/model.plan")]


def _tensor(kind: str, value: ir.Value) -> str:
    if value.dtype not in TYPES:
        raise Unsupported(f"Triton has no type for {value.name}, which is {value.dtype}")
    dims = ", ".join(str(dim) if isinstance(dim, int) else "-1" for dim in dims_of([value])[str(value.name)])
    return f'{kind} {{\n  name: "{value.name}"\n  data_type: {TYPES[value.dtype]}\n  dims: [ {dims} ]\n}}\n'
