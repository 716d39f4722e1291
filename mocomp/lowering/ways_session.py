"""One mixture in ONNX Runtime, run in some way on weights of its own: what is timed, and what tests look at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from mocomp.lowering.branches import Turn, alone
from mocomp.lowering.onnx_session import session
from mocomp.lowering.ways import Layer

Weights = dict[str, np.ndarray]


def weights_for(layer: Layer, seed: int = 0) -> Weights:
    """Random weights of the shapes and types that a layer has: small floats, or bytes."""
    random, made = np.random.default_rng(seed), {}
    types = dict(layer.types)
    for name, shape in layer.shapes:
        if types[name] == "float":
            made[name] = random.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
        else:
            made[name] = random.integers(0, 256, shape, np.uint8)
    return made


class WaySession:
    """x [T, H], logits [T, E] -> y [T, H], float32, in `turns`."""

    def __init__(self, opened: Any):
        self._session = opened

    @classmethod
    def on(cls, layer: Layer, turns: tuple[Turn, ...], weights: Weights) -> WaySession:
        """On weights in memory; sessions made of the same share it."""
        import onnxruntime

        model = alone(layer, turns)
        for tensor in model.graph.initializer:
            _say(tensor, {"location": "given"})
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
        options.add_external_initializers(list(values), list(values.values()))
        return cls(onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]))

    @classmethod
    def of(cls, layer: Layer, turns: tuple[Turn, ...], node: ir.Node, directory: Path) -> WaySession:
        """On the weights of a mixture of the artifact in `directory`, mapped into memory as they will be when it runs."""
        model = alone(layer, turns)
        stored = dict(zip(layer.inputs, node.inputs, strict=True))
        for tensor in model.graph.initializer:
            value = stored[tensor.name]
            assert value is not None and isinstance(value.const_value, ir.ExternalTensor)
            at = value.const_value
            _say(tensor, {"location": str(at.location), "offset": str(at.offset), "length": str(at.length)})
        return cls(session(model.SerializeToString(), directory))

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """y for x and logits by their names."""
        return np.asarray(self._session.run(None, dict(inputs))[0])


def _say(tensor: onnx.TensorProto, entries: Mapping[str, str]) -> None:
    """Where the data of an initializer is."""
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
