"""The roofline of the machine (Williams 2009): how fast it reads memory and multiplies, and the least time of a run on it.

Bandwidth is that of a sum over an array, which is only read, as weights are: over one larger than the last cache, and over one
as large as the artifact's weights, which may lie in the cache. Arithmetic is that of a float32 product of square matrices, the
best of torch and ONNX Runtime. Best of several, in a process with as many threads as the subjects have.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mocomp.verify.memory import available

SIDE, LARGEST = 1536, 1 << 30
TIMES, SECONDS = 4, 0.1
WORDS = (
    "bandwidth: sum over a float32 array, best of several; arithmetic: float32 matrix product, best of torch and ONNX Runtime; "
    "same threads as the subjects, asked in every round"
)


@dataclass(frozen=True)
class Work:
    """What a run cannot do without: bytes that it reads, floating point operations; None for what was not counted."""

    bytes: int | None = None
    flop: int | None = None


@dataclass
class Roofline:
    """GB/s of memory, GB/s of an array as large as the artifact's weights, and GFLOP/s: the best seen; and all that were."""

    bandwidth_gb_s: float = 0.0
    weights_gb_s: float = 0.0
    gflop_s: float = 0.0

    def add(self, seen: dict[str, float]) -> None:
        """One more measurement."""
        self.bandwidth_gb_s = max(self.bandwidth_gb_s, seen["bandwidth_gb_s"])
        self.weights_gb_s = max(self.weights_gb_s, seen["weights_gb_s"], self.bandwidth_gb_s)
        self.gflop_s = max(self.gflop_s, seen["gflop_s"])

    def bound_ms(self, work: Work) -> float | None:
        """The least time that a run could take, None when its work was not counted."""
        times = [1e-6 * work.bytes / self.weights_gb_s] if work.bytes is not None else []
        times += [1e-6 * work.flop / self.gflop_s] if work.flop is not None else []
        return max(times, default=None)


class Measure:
    """What a process of the benchmark holds to be asked about the machine; `weights` is the artifact's bytes."""

    words = WORDS

    def __init__(self, request: dict[str, Any]):
        torch.set_num_threads(request["threads"])
        self.memory = torch.ones(_size() // 4)
        self.weights = self.memory[: max(request["weights"] // 4, 1 << 16)]
        self.matrix = torch.rand(SIDE, SIDE)
        self.products = [lambda: self.matrix @ self.matrix, *_in_onnxruntime(self.matrix.numpy(), request["threads"])]

    def answer(self, request: dict[str, Any]) -> dict[str, float]:
        """What the machine does now."""
        flop = 2 * SIDE**3
        return {
            "bandwidth_gb_s": 1e-9 * self.memory.nbytes / _best(self.memory.sum),
            "weights_gb_s": 1e-9 * self.weights.nbytes / _best(self.weights.sum),
            "gflop_s": max(1e-9 * flop / _best(product) for product in self.products),
        }


def _size() -> int:
    """Bytes of an array that no cache holds: what a virtual machine says of caches is not what it gets of them."""
    free = available()
    return LARGEST if free is None else min(LARGEST, free // 4)


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of several runs."""
    best, end, runs = float("inf"), time.perf_counter() + SECONDS, 0
    while runs < TIMES or time.perf_counter() < end:
        begin = time.perf_counter()
        run()
        best, runs = min(best, time.perf_counter() - begin), runs + 1
    return best


def _in_onnxruntime(matrix: np.ndarray, threads: int) -> list[Callable[[], Any]]:
    """The product as ONNX Runtime does it, where it is installed; its kernels are not torch's."""
    try:
        import onnxruntime
    except ImportError:
        return []
    from onnx import TensorProto, helper, numpy_helper

    shape = [SIDE, SIDE]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "product", [x], [y], [numpy_helper.from_array(matrix, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [lambda: session.run(None, {"x": matrix})]
