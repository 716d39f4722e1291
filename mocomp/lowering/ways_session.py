"""One mixture in ONNX Runtime, run in some way on weights that are given: what is timed, and what tests look at."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from mocomp.lowering.branches import Turn, alone
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
    """x [T, H], logits [T, E] -> y [T, H], float32, in `turns`; sessions made of the same `weights` share their memory."""

    def __init__(self, layer: Layer, turns: tuple[Turn, ...], weights: Weights):
        import onnxruntime

        model = alone(layer, turns)
        for tensor in model.graph.initializer:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            entry = tensor.external_data.add()
            entry.key, entry.value = "location", "given"
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self._weights = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
        options.add_external_initializers(list(self._weights), list(self._weights.values()))
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """y for x and logits by their names."""
        return np.asarray(self._session.run(None, dict(inputs))[0])
