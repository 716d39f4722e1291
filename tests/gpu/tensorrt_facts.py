"""What is said of TensorRT's ONNX parser and builder, each statement with a graph that is parsed, built and run.

    python -m tests.gpu.tensorrt_facts [facts.json]     # a table, and the same as JSON

Sources: the parser's operators.md (TensorRT 10.15), release notes to 11.4, NvInfer.h. The outcomes are what these say; none was
seen on a GPU.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.gpu.facts import TOLERANCE, Fact, run
from tests.gpu.hardware import missing
from tests.gpu.operator_facts import model_of

Array = np.ndarray


@dataclass(frozen=True)
class Graph:
    """A model with float32 inputs, what to feed it, and its output y."""

    model: bytes
    feeds: dict[str, Array]
    expected: Array
    dtype: str = "float32"

    def outcome(self, device: str) -> str:
        """`right`, `wrong`, `refused` by the parser or the builder with its words."""
        from polygraphy.backend.trt import EngineFromNetwork, NetworkFromOnnxBytes, TrtRunner
        from polygraphy.exception import PolygraphyException

        try:
            engine = EngineFromNetwork(NetworkFromOnnxBytes(self.model, strongly_typed=True))
            with TrtRunner(engine) as runner:
                y = np.asarray(runner.infer(self.feeds)["y"])
        except PolygraphyException as error:
            return f"refused: {str(error).strip().splitlines()[0][:200]}"
        if y.shape != self.expected.shape or not np.isfinite(y).all():
            return f"wrong: shape {list(y.shape)}, or no numbers"
        error = float(np.abs(y - self.expected).max() / max(float(np.abs(self.expected).max()), 1e-6))
        return "right" if error <= TOLERANCE[self.dtype] else f"wrong: {error:.2g} off"


def _normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape, np.float32)


def _one(
    operator: str,
    feeds: dict[str, Array],
    expected: Array,
    said: dict[str, Any] | None = None,
    opset: int = 24,
    dtype: str = "float32",
    domain: str = "",
) -> Graph:
    """A node that takes the feeds in order."""
    node = helper.make_node(operator, [f"{name}_cast" for name in feeds], ["y_cast"], domain=domain, **(said or {}))
    return Graph(model_of([node], feeds, dtype, opset, 11), feeds, expected, dtype)


def _matmul(dtype: str, opset: int = 24) -> Graph:
    a, b = _normal(4, 32), _normal(32, 8)
    return _one("MatMul", {"a": a, "b": b}, a @ b, dtype=dtype, opset=opset)


def _topk(k: int) -> Graph:
    x = _normal(2, 4096)
    count = helper.make_tensor("k", TensorProto.INT64, [1], [k])
    node = helper.make_node("TopK", ["x_cast", "k"], ["y_cast", "at"], sorted=1)
    return Graph(model_of([node], {"x": x}, "float32", 24, 11, [count]), {"x": x}, -np.sort(-x, -1)[:, :k])


def _cumsum(to: int) -> Graph:
    """Running sums of whole numbers, computed as integers or as floats."""
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    nodes = [
        helper.make_node("Cast", ["x_cast"], ["n"], to=to),
        helper.make_node("CumSum", ["n", "axis"], ["s"]),
        helper.make_node("Cast", ["s"], ["y_cast"], to=TensorProto.FLOAT),
    ]
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
    return Graph(model_of(nodes, {"x": x}, "float32", 24, 11, [axis]), {"x": x}, x.cumsum(1))


def _scatter(reduction: str) -> Graph:
    x, rows = _normal(3, 4), _normal(2, 4)
    indices = helper.make_tensor("at", TensorProto.INT64, [2, 1], [0, 2])
    said = {"reduction": reduction} if reduction != "none" else {}
    node = helper.make_node("ScatterND", ["x_cast", "at", "rows_cast"], ["y_cast"], **said)
    expected = x.copy()
    expected[[0, 2]] = rows + (x[[0, 2]] if reduction == "add" else 0)
    feeds = {"x": x, "rows": rows}
    return Graph(model_of([node], feeds, "float32", 24, 11, [indices]), feeds, expected)


def _attention(dtype: str) -> Graph:
    q, k, v = _normal(1, 4, 6, 16), _normal(1, 2, 6, 16), _normal(1, 2, 6, 16) + 1
    scores = np.einsum("bnsd,bnpd->bnsp", q, k.repeat(2, 1)) / 4
    scores = np.exp(np.where(np.tri(6, dtype=bool), scores, -np.inf))
    expected = scores / scores.sum(-1, keepdims=True) @ v.repeat(2, 1)
    return _one("Attention", {"q": q, "k": k, "v": v}, expected, {"is_causal": 1}, dtype=dtype)


def _norm() -> Graph:
    x, w = _normal(3, 32), _normal(32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w
    return _one("RMSNormalization", {"x": x, "w": w}, expected, {"epsilon": 1e-6}, dtype="float16")


def _swish() -> Graph:
    x = _normal(3, 32)
    return _one("Swish", {"x": x}, x / (1 + np.exp(-x)), dtype="float16")


def _packed(number: int, code: int, value: float, block: int, axis: int = 1, point: int | None = None) -> Graph:
    """A product with weights [E, K, N] = [2, 128, 64], all of one code, in blocks along `axis`; scales are 1/8."""
    x, shape = _normal(2, 4, 128), (2, 128, 64)
    halves = number in (TensorProto.INT4, TensorProto.FLOAT4E2M1)
    size = int(np.prod(shape)) // (2 if halves else 1)
    w = helper.make_tensor("w", number, shape, bytes([code | code << 4 if halves else code]) * size, raw=True)
    of_scales = [size // block if i == axis else size for i, size in enumerate(shape)]
    scale = helper.make_tensor("s", TensorProto.FLOAT16, of_scales, np.full(int(np.prod(of_scales)), 0.125))
    constants, names = [w, scale], ["w", "s"]
    if point is not None:
        count = int(np.prod(of_scales))
        constants.append(helper.make_tensor("z", number, of_scales, np.full(count, point, np.int8)))
        names.append("z")
    nodes = [
        helper.make_node("DequantizeLinear", names, ["full"], axis=axis, block_size=block),
        helper.make_node("MatMul", ["x_cast", "full"], ["y_cast"]),
    ]
    expected = x @ np.full(shape, (value - (point or 0)) / 8, np.float32)
    return Graph(model_of(nodes, {"x": x}, "float16", 23, 11, constants), {"x": x}, expected, "float16")


def _moe() -> Graph:
    """TRT_MoE with one expert chosen, weights as [E, in, out]."""
    x, gate, up, down = _normal(1, 4, 128), *(_normal(2, 128, 128) / 11 for _ in range(3))
    inner = x[0] @ gate[1]
    expected = ((inner / (1 + np.exp(-inner))) * (x[0] @ up[1]) @ down[1])[None]
    ids = helper.make_tensor("ids", TensorProto.INT32, [1, 4, 1], [1] * 4)
    feeds = {"x": x, "scores": np.ones((1, 4, 1), np.float32), "gate": gate, "up": up, "down": down}
    names = ["x_cast", "ids", "scores_cast", "gate_cast", "up_cast", "down_cast"]
    node = helper.make_node("TRT_MoE", names, ["y_cast"], activation_type=1)
    return Graph(model_of([node], feeds, "float16", 24, 11, [ids]), feeds, expected, "float16")


RUNS_ANYWHERE = {
    "MatMul float16": ("runs", "right", _matmul("float16")),
    "opset 24": ("9 to 24", "right", _matmul("float32")),
    "opset 25": ("from 11.5 on", "", _matmul("float32", 25)),
    "TopK 64": ("runs", "right", _topk(64)),
    "TopK 3840": ("K below 3840", "refused", _topk(3840)),
    "CumSum float": ("runs", "right", _cumsum(TensorProto.FLOAT)),
    "CumSum integer": ("floats only", "refused", _cumsum(TensorProto.INT64)),
    "ScatterND": ("runs", "right", _scatter("none")),
    "ScatterND add": ("no reduction", "refused", _scatter("add")),
    "Attention float16": ("4D, causal, grouped heads", "right", _attention("float16")),
    "RMSNormalization float16": ("runs", "right", _norm()),
    "Swish float16": ("from 11.0 on", "right", _swish()),
    **{
        f"int4 [E, K, N], block {block}": ("kernels unsure", "", _packed(TensorProto.INT4, 3, 3, block))
        for block in (16, 32, 64, 128)
    },
    "int8 [E, K, N], block 128": ("unsure", "", _packed(TensorProto.INT8, 3, 3, 128)),
    "fp8 [E, K, N], block 128": ("unsure", "", _packed(TensorProto.FLOAT8E4M3FN, 0x38, 1, 128)),
    "int4, a zero point": ("symmetric only", "refused", _packed(TensorProto.INT4, 3, 3, 128, point=1)),
    "int4, blocks along experts": ("last two axes only", "refused", _packed(TensorProto.INT4, 3, 3, 2, axis=0)),
}
"""(what is said, the outcome that follows, the graph) of graphs that ONNX Runtime runs as well."""
TENSORRT_ALONE = {
    "fp4 [E, K, N], block 16": ("double quantisation only", "", _packed(TensorProto.FLOAT4E2M1, 2, 1, 16)),
    "TRT_MoE": ("SM 10.x and 11.x only", "", _moe()),
}
FACTS = [Fact(name, says, graph.outcome, gpu) for name, (says, gpu, graph) in {**RUNS_ANYWHERE, **TENSORRT_ALONE}.items()]


def main(output: str = "") -> int:
    """See them all, where TensorRT is."""
    if (reason := missing("tensorrt")) is not None:
        print(reason)
        return 0
    import torch  # noqa: F401 - brings the libraries of CUDA

    return run(FACTS, "cuda", output)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
