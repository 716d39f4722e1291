"""The other part of what the recorder plays: engines that are loaded, refitted and run."""

import ctypes
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from mocomp.lowering.emulation import widen
from mocomp.lowering.onnx_session import exposing, session
from tests.tensorrt.played import TYPES
from tests.tensorrt.recorder import Recorded

NUMPY = {
    "FLOAT": np.dtype(np.float32), "HALF": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16),
    "INT64": np.dtype(np.int64), "INT32": np.dtype(np.int32), "BOOL": np.dtype(bool),
}  # fmt: skip


class IStreamReaderV2(Recorded):
    def __init__(self) -> None:
        pass


class IOutputAllocator(Recorded):
    def __init__(self) -> None:
        pass


class IDebugListener(Recorded):
    def __init__(self) -> None:
        pass


class Runtime(Recorded):
    def __init__(self, logger: Any):
        pass

    def deserialize_cuda_engine(self, reader: Any) -> "ICudaEngine":
        return ICudaEngine(json.loads(reader.read(-1)), Path(reader.filepath).parent)


class Refitter(Recorded):
    def __init__(self, engine: "ICudaEngine", logger: Any):
        self._engine, self._graph = engine, ""

    def refit_cuda_engine(self) -> bool:
        self._engine._whole = self._graph.endswith(".onnx")
        return self._engine._whole


class OnnxParserRefitter(Recorded):
    def __init__(self, refitter: Refitter, logger: Any):
        self._refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        self._refitter._graph = path
        return True


class ICudaEngine(Recorded):
    def __init__(self, plan: dict[str, Any], directory: Path):
        self._plan, self._directory, self._budget = plan, directory, None
        self._model = ir.load(directory / plan["graph"])
        self._whole = "STRIP_PLAN" not in plan["flags"]
        self._values = {str(v.name): v for v in (*self._model.graph.inputs, *self._model.graph.outputs)}

    @property
    def num_io_tensors(self) -> int:
        return len(self._values)

    @property
    def streamable_weights_size(self) -> int:
        return 1 << 20

    @property
    def weight_streaming_budget_v2(self) -> int | None:
        return self._budget

    @weight_streaming_budget_v2.setter
    def weight_streaming_budget_v2(self, size: int) -> None:
        self._budget = size

    def get_weight_streaming_automatic_budget(self) -> int:
        return 1 << 19

    def get_tensor_name(self, i: int) -> str:
        return list(self._values)[i]

    def get_tensor_mode(self, name: str) -> int:
        given = self._values[name].is_graph_input()
        return Recorded.trt.TensorIOMode.INPUT if given else Recorded.trt.TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> int:
        return Recorded.trt.DataType[TYPES[self._values[name].dtype.name]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else -1 for dim in self._values[name].shape)

    def get_tensor_format(self, name: str, profile: int) -> int:
        return Recorded.trt.TensorFormat.LINEAR

    def get_aliased_input_tensor(self, name: str) -> None:
        return None

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def create_execution_context(self, *strategy: int) -> "IExecutionContext":
        return IExecutionContext(self)


class IExecutionContext(Recorded):
    def __init__(self, engine: ICudaEngine):
        self._engine, self._profile, self._shapes, self._at, self._allocators = engine, 0, {}, {}, {}
        self._listener: Any = None
        model = engine._model.clone()
        widen(model)
        self._session = session(exposing(model, engine._plan["debug"]), engine._directory)

    @property
    def engine(self) -> ICudaEngine:
        return self._engine

    @property
    def active_optimization_profile(self) -> int:
        return self._profile

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile, self._shapes = index, {}
        return index < len(self._engine._plan["profiles"])

    def set_all_tensors_debug_state(self, on: bool) -> bool:
        return True

    def set_debug_listener(self, listener: Any) -> bool:
        self._listener = listener
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes.get(name, self._engine.get_tensor_shape(name))

    def set_input_shape(self, name: str, shape: Any) -> bool:
        least, _, most = self._engine._plan["profiles"][self._profile][name]
        self._shapes[name] = tuple(shape)
        return all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True))

    def get_tensor_address(self, name: str) -> int:
        return self._at.get(name, 0)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._at[name] = address
        return True

    def set_output_allocator(self, name: str, allocator: Any) -> bool:
        self._allocators[name] = allocator
        return True

    def execute_async_v3(self, stream: int) -> bool:
        if not self._engine._whole:
            return False
        fed = {value.name: self._given(value.name) for value in self._engine._model.graph.inputs}
        names = [value.name for value in self._session.get_outputs()]
        for name, array in zip(names, self._session.run(None, fed), strict=True):
            if name in self._allocators:
                self._give(name, array)
            else:
                self._show(name, array)
        return True

    def _given(self, name: str) -> np.ndarray:
        kind = NUMPY[self._engine.get_tensor_dtype(name).name]
        shape = self._shapes[name]
        held = ctypes.string_at(self._at[name], int(np.prod(shape)) * kind.itemsize)
        array = np.frombuffer(held, kind).reshape(shape)
        return array.astype(np.float32) if kind.name in ("float16", "bfloat16") else array

    def _give(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array.astype(NUMPY[self._engine.get_tensor_dtype(name).name]))
        address = self._allocators[name].reallocate_output(name, 0, array.nbytes, 256)
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self._allocators[name].notify_shape(name, array.shape)

    def _show(self, name: str, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        kind = Recorded.trt.DataType.INT64 if array.dtype == np.int64 else Recorded.trt.DataType.FLOAT
        where = Recorded.trt.TensorLocation.DEVICE
        self._listener.process_debug_tensor(array.ctypes.data, where, kind, array.shape, name, 1)
