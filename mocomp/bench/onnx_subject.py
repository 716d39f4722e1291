"""A model.onnx in ONNX Runtime, with nothing imported that serving it would not import."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from mocomp.bench.worker import Timed
from mocomp.errors import MissingDependency


class OnnxSubject(Timed):
    """A session of `directory`/model.onnx on `threads` threads of the CPU, or on `device` cuda.

    There inputs lie on the GPU before a run begins, and outputs stay. Caches are fed in their order, since other exporters than
    mocomp call them by other names.
    """

    def __init__(self, request: dict[str, Any]):
        self.file = Path(request["directory"]) / "model.onnx"
        self.cuda, self.tf32 = request.get("device") == "cuda", bool(request.get("tf32"))
        self.how = "CUDA" if self.cuda else ""
        self.words = f"ONNX Runtime {onnxruntime.__version__}" + (", CUDA" if self.cuda else "")
        if self.cuda:
            self.session = self._on_cuda(graphs=False).session
            return
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])

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
        if self.cuda:
            return self._ready_on_cuda(fed)
        return lambda: lambda: self.session.run(None, fed)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """As of any subject, and `how` it ran, where there is more than one way."""
        found = super().answer(request)
        return found | ({"how": self.how} if self.how else {})

    def _ready_on_cuda(self, fed: dict[str, np.ndarray]) -> Callable[[], Callable[[], Any]]:
        from mocomp.lowering.cuda_session import replayed

        run, self.how = replayed(self._on_cuda, fed)
        return lambda: run

    def _on_cuda(self, graphs: bool) -> Any:
        """The artifact on the GPU. Raises MissingDependency where there is none."""
        from mocomp.lowering.cuda_session import BoundSession, missing_cuda
        from mocomp.lowering.onnx_session import session

        if (reason := missing_cuda(onnxruntime)) is not None:
            raise MissingDependency(reason.split(": ")[0], where=str(self.file), fix=reason.partition(": ")[2])
        return BoundSession(session(str(self.file), self.file.parent, "cuda", graphs, tf32=self.tf32), "cuda")


def _positions(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Where the new tokens stand, after the past: [B, S] int64."""
    batch, sequence = arrays["input_ids"].shape
    total = arrays["attention_mask"].shape[1]
    return np.tile(np.arange(total - sequence, total), (batch, 1))
