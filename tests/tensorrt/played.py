"""The parts of TensorRT that its recorder plays: networks are ONNX files, plans are JSON, and engines run in ONNX Runtime.

A parser refuses what `mocomp check` knows that it refuses; a profile takes no shape outside it; a stripped plan has no weights.
"""

import json
from pathlib import Path
from typing import Any

import onnx_ir as ir

from mocomp.capability.tensorrt import graph_gaps
from tests.tensorrt.recorder import Recorded

TYPES = {"FLOAT": "FLOAT", "FLOAT16": "HALF", "BFLOAT16": "BF16", "INT64": "INT64", "INT32": "INT32", "BOOL": "BOOL"}


class ILogger(Recorded):
    pass


class Logger(ILogger):
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class ITensor(Recorded):
    def __init__(self, value: ir.Value):
        self._value = value
        self._shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape or ())

    @property
    def name(self) -> str:
        return str(self._value.name)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> int:
        return Recorded.trt.DataType[TYPES[self._value.dtype.name]]

    @property
    def is_shape_tensor(self) -> bool:
        return False


class ILayer(Recorded):
    def __init__(self, node: ir.Node):
        self._inputs = [ITensor(value) for value in node.inputs if value is not None]
        self._outputs = [ITensor(value) for value in node.outputs]

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, i: int) -> ITensor:
        return self._inputs[i]

    def get_output(self, i: int) -> ITensor:
        return self._outputs[i]


class INetworkDefinition(Recorded):
    def __init__(self) -> None:
        self._path, self._inputs, self._layers, self._debug = "", [], [], []

    def __iter__(self) -> Any:
        return iter(self._layers)

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    def get_input(self, i: int) -> ITensor:
        return self._inputs[i]

    def get_flag(self, flag: int) -> bool:
        return False

    def mark_debug(self, tensor: ITensor) -> bool:
        self._debug.append(tensor.name)
        return True


class OnnxParser(Recorded):
    def __init__(self, network: INetworkDefinition, logger: Any):
        self._network, self._errors = network, []

    def parse_from_file(self, path: str) -> bool:
        model = ir.load(path)
        self._errors = [str(gap) for gap in graph_gaps(model, "11.4") if gap.blocks]
        self._network._path = path
        self._network._inputs = [ITensor(value) for value in model.graph.inputs]
        self._network._layers = [ILayer(node) for node in model.graph]
        return not self._errors

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, i: int) -> str:
        return self._errors[i]


class IOptimizationProfile(Recorded):
    def __bool__(self) -> bool:
        return bool(self._shapes)

    def __init__(self) -> None:
        self._shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, least: Any, typical: Any, most: Any) -> None:
        self._shapes[name] = [list(least), list(typical), list(most)]


class ITimingCache(Recorded):
    def __init__(self, data: bytes):
        self._data = data

    def combine(self, other: "ITimingCache", ignore_mismatch: bool) -> bool:
        self._data += other._data
        return True

    def serialize(self) -> "IHostMemory":
        return IHostMemory(self._data + b"timed;")


class IHostMemory(bytes):
    def __enter__(self) -> "IHostMemory":
        return self

    def __exit__(self, *exception: object) -> None:
        pass


class IBuilderConfig(Recorded):
    def __init__(self) -> None:
        self._flags, self._profiles, self._pools = {int(Recorded.trt.BuilderFlag.TF32)}, [], {}

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._profiles)

    @property
    def DLA_core(self) -> int:  # noqa: N802
        return -1

    @property
    def default_device_type(self) -> int:
        return Recorded.trt.DeviceType.GPU

    @property
    def engine_capability(self) -> int:
        return Recorded.trt.EngineCapability.STANDARD

    def set_flag(self, flag: int) -> None:
        self._flags.add(int(flag))

    def clear_flag(self, flag: int) -> None:
        self._flags.discard(int(flag))

    def get_flag(self, flag: int) -> bool:
        return int(flag) in self._flags

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profiles.append(profile._shapes)
        return len(self._profiles) - 1

    def set_memory_pool_limit(self, pool: int, size: int) -> None:
        self._pools[int(pool)] = size

    def get_memory_pool_limit(self, pool: int) -> int:
        return self._pools.get(int(pool), 0)

    def get_tactic_sources(self) -> int:
        return 0

    def get_preview_feature(self, feature: int) -> bool:
        return False

    def create_timing_cache(self, data: Any) -> ITimingCache:
        return ITimingCache(bytes(data))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache:
        return self._cache


class Builder(Recorded):
    def __init__(self, logger: Any):
        pass

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> IHostMemory:
        flags = [flag.name for flag in Recorded.trt.BuilderFlag if config.get_flag(flag)]
        plan = {"graph": Path(network._path).name, "profiles": config._profiles, "debug": network._debug, "flags": flags}
        return IHostMemory(json.dumps(plan).encode())
