"""The subject of `gpu.py` that runs in TensorRT: what mocomp makes with --target tensorrt, fed by address.

Unproven on hardware until a run of the benchmark on a GPU with TensorRT says otherwise.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from gpu_layers import VOCABULARY, Inputs
from gpu_onnx import converted, empty_past, feeds, refuse_missing
from gpu_subjects import Case, Subject, Unavailable
from torch import Tensor

PROFILE = "all:batch=1..1..1,sequence=1..128..4096"
TYPES = {
    "FLOAT": torch.float32,
    "HALF": torch.float16,
    "BF16": torch.bfloat16,
    "INT64": torch.int64,
    "INT32": torch.int32,
    "BOOL": torch.bool,
}


class Engine(Subject):
    """The engine that mocomp builds of the whole model."""

    device = "cuda"
    scopes = ("model",)

    def __init__(self, dtype: str):
        super().__init__(f"mocomp tensorrt {dtype}", dtype)

    def prepare(self, case: Case) -> None:
        for name in ("tensorrt", "polygraphy"):
            if importlib.util.find_spec(name) is None:
                raise Unavailable(f"{name} is not installed")
        refuse_missing()
        from mocomp.options import ConvertOptions

        options = ConvertOptions(
            target="tensorrt", device="cuda", dtype=self.dtype, profiles=(PROFILE,), parity="off", force=True
        )
        directory, _ = converted(case, self.name, options)
        tensorrt = importlib.import_module("tensorrt")
        self.runtime: Any = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
        self.engine: Any = self.runtime.deserialize_cuda_engine((directory / "model.plan").read_bytes())
        if self.engine is None:
            raise Unavailable("TensorRT does not load the engine")

    def call(self, scope: str, inputs: Inputs) -> Callable[[], Tensor]:
        tensorrt = importlib.import_module("tensorrt")
        context, given, kept = self.engine.create_execution_context(), feeds(inputs), {}
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        for name in names:
            shape, dtype = list(self.engine.get_tensor_shape(name)), TYPES[self.engine.get_tensor_dtype(name).name]
            if self.engine.get_tensor_mode(name) != tensorrt.TensorIOMode.INPUT:
                continue
            unknown = [size if size >= 0 else None for size in shape]
            tensor = given[name] if name in given else empty_past(unknown, "cuda")
            kept[name] = tensor.to(dtype).contiguous()
            context.set_input_shape(name, tuple(tensor.shape))
        for name in (name for name in names if name not in kept):
            dtype = TYPES[self.engine.get_tensor_dtype(name).name]
            kept[name] = torch.zeros(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
        for name, tensor in kept.items():
            context.set_tensor_address(name, tensor.data_ptr() or _somewhere().data_ptr())

        def run() -> Tensor:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise Unavailable("TensorRT did not run the engine")
            return kept["logits"].reshape(1, -1, VOCABULARY)

        return run

    def release(self) -> None:
        self.engine = self.runtime = None


_PLACE: list[Tensor] = []


def _somewhere() -> Tensor:
    """An address for tensors without elements, which TensorRT asks for."""
    if not _PLACE:
        _PLACE.append(torch.zeros(256, device="cuda"))
    return _PLACE[0]


def tensorrt_subjects() -> list[Subject]:
    """One per type."""
    return [Engine("float16"), Engine("bfloat16")]
