"""A model.onnx in ONNX Runtime, with nothing imported that serving it would not import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mocomp.bench.worker import Timed


class OnnxSubject(Timed):
    """A session of `directory`/model.onnx on `threads` threads.

    Caches are fed in their order, since other exporters than mocomp call them by other names.
    """

    def __init__(self, request: dict[str, Any]):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.log_severity_level = 3
        file = Path(request["directory"]) / "model.onnx"
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.words = f"ONNX Runtime {onnxruntime.__version__}"

    def ready(self, file: str) -> Callable[[], Callable[[], Any]]:
        """The arrays of `file` under the names of the session's inputs."""
        with np.load(file, allow_pickle=False) as given:
            arrays = dict(given)
        caches = [array for name, array in arrays.items() if name.startswith("past_key_values")]
        names = [value.name for value in self.session.get_inputs()]
        slots = [name for name in names if "past" in name]
        fed = {name: arrays[name] for name in names if name in arrays} | dict(zip(slots, caches, strict=True))
        if "position_ids" in names:
            fed["position_ids"] = _positions(arrays)
        return lambda: lambda: self.session.run(None, fed)


def _positions(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Where the new tokens stand, after the past: [B, S] int64."""
    batch, sequence = arrays["input_ids"].shape
    total = arrays["attention_mask"].shape[1]
    return np.tile(np.arange(total - sequence, total), (batch, 1))
