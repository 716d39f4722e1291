"""A TensorRT engine that runs, through Polygraphy."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from mocomp.deployment import Engine
from mocomp.errors import BadInput
from mocomp.lowering.engine import explained

TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT64: torch.int64,
    ir.DataType.INT32: torch.int32,
    ir.DataType.BOOL: torch.bool,
}


class EngineSession:
    """The engine in the file `plan`, which was built of `graph`; `types` are those of its inputs.

    Weights that were stripped from the plan are taken from `graph`. Raises BadInput for a plan that is not there, Unsupported
    for one that does not load here.
    """

    def __init__(self, plan: Path, graph: Path, types: Mapping[str, ir.DataType], engine: Engine):
        if not plan.exists():
            raise BadInput(f"no {plan.name}", where=str(plan.parent), fix="Build it: mocomp build DIR, on the GPU machine.")
        from polygraphy.backend.trt import EngineFromBytes, FileReader, TrtRunner

        self.types = {name: TYPES[kind] for name, kind in types.items()}
        self.where = str(plan)
        with explained(self.where):
            with FileReader(str(plan)) as reader:  # EngineFromPath leaves its file open
                loaded = EngineFromBytes(reader)()
            if engine.strip_plan:
                _refit(loaded, graph)
            automatic = -1
            self.runner = TrtRunner(loaded, weight_streaming_budget=automatic if engine.weight_streaming else None)
            self.runner.activate()
        weakref.finalize(self, self.runner.deactivate)

    def run(self, profile: int, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All outputs by name, and the values that it was built to show, floats as float32; `profile` is an index."""
        fed = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])).to(kind) for name, kind in self.types.items()}
        with explained(self.where):
            self.runner.set_profile(profile)
            made = self.runner.infer(fed, check_inputs=False)
        return {name: _array(value) for name, value in made.items()}


def _array(value: Any) -> np.ndarray:
    """A copy, since the runner writes the next results to the same memory."""
    tensor = torch.as_tensor(value)
    return (tensor.float() if tensor.is_floating_point() else tensor).clone().numpy()


def _refit(engine: Any, graph: Path) -> None:
    import tensorrt as trt  # pyright: ignore[reportMissingImports]
    from polygraphy.backend.trt import get_trt_logger

    refitter = trt.Refitter(engine, get_trt_logger())
    parser = trt.OnnxParserRefitter(refitter, get_trt_logger())
    if not parser.refit_from_file(str(graph)) or not refitter.refit_cuda_engine():
        raise BadInput("its weights do not fit into the engine", where=str(graph), fix="Build again: mocomp build DIR.")
