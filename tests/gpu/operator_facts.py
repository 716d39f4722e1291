"""What is said of standard operators that mocomp emits, in ONNX Runtime: which a provider runs, and in which types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from tests.gpu.facts import Fact, outcome

CAST = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
Array = np.ndarray


def model_of(
    nodes: list[Any],
    feeds: dict[str, Array],
    dtype: str,
    opset: int = 24,
    ir_version: int = 10,
    constants: list[Any] | None = None,
) -> bytes:
    """`nodes` from float32 feeds, cast to `dtype` as NAME_cast, to y_cast, cast back to y."""
    casts = [helper.make_node("Cast", [name], [f"{name}_cast"], to=CAST[dtype]) for name in feeds]
    back = helper.make_node("Cast", ["y_cast"], ["y"], to=TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(value.shape)) for name, value in feeds.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([*casts, *nodes, back], "operator", inputs, [output], constants or [])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version).SerializeToString()


def _normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def _attention(dtype: str, opset: int) -> Callable[[str], str]:
    """Standard Attention with two query heads for each key head, causal."""
    q, k, v = _normal(1, 4, 6, 16), _normal(1, 2, 6, 16), _normal(1, 2, 6, 16) + 1
    scores = np.einsum("bnsd,bnpd->bnsp", q, k.repeat(2, 1)) / 4
    scores = np.where(np.tri(6, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (shares / shares.sum(-1, keepdims=True)) @ v.repeat(2, 1)
    node = helper.make_node("Attention", ["q_cast", "k_cast", "v_cast"], ["y_cast"], is_causal=1)
    return _run([node], {"q": q, "k": k, "v": v}, expected, dtype, opset)


def _norm(dtype: str) -> Callable[[str], str]:
    x, w = _normal(3, 32), _normal(32)
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * w
    node = helper.make_node("RMSNormalization", ["x_cast", "w_cast"], ["y_cast"], epsilon=1e-6)
    return _run([node], {"x": x, "w": w}, expected, dtype)


def _swish(dtype: str) -> Callable[[str], str]:
    x = _normal(3, 32)
    return _run([helper.make_node("Swish", ["x_cast"], ["y_cast"])], {"x": x}, x / (1 + np.exp(-x)), dtype)


def _masked_softmax(device: str) -> str:
    x = _normal(2, 8)
    x[1] = -np.inf
    model = model_of([helper.make_node("Softmax", ["x_cast"], ["y_cast"])], {"x": x}, "float32")
    return outcome(model, {"x": x}, np.zeros_like(x), device)


def _opset(opset: int, ir_version: int) -> Callable[[str], str]:
    x = _normal(2, 8)
    return _run([helper.make_node("Relu", ["x_cast"], ["y_cast"])], {"x": x}, np.maximum(x, 0), "float32", opset, ir_version)


def _blocked(number: int, code: int, value: float) -> Callable[[str], str]:
    """MatMul with experts [E, K, N], in blocks of 16 along K and scales of 1/8; every weight is `value` / 8."""
    x, shape = _normal(2, 3, 32), (2, 32, 16)
    size = int(np.prod(shape)) // (2 if number in (TensorProto.INT4, TensorProto.FLOAT4E2M1) else 1)
    byte = code | code << 4 if size < np.prod(shape) else code
    w = helper.make_tensor("w", number, shape, bytes([byte]) * size, raw=True)
    scale = helper.make_tensor("s", TensorProto.FLOAT, (2, 2, 16), np.full(64, 1 / 8, np.float32))
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["full"], axis=1, block_size=16),
        helper.make_node("MatMul", ["x_cast", "full"], ["y_cast"]),
    ]
    return _run(nodes, {"x": x}, x @ np.full(shape, value / 8, np.float32), "float32", 23, 11, [w, scale])


def _matmul_nbits(bits: int, block: int) -> Callable[[str], str]:
    """MatMulNBits whose codes are all 1 above the middle, so that every weight is its scale."""
    x, rows, columns = _normal(3, 128), 32, 128
    one = (1 << (bits - 1)) + 1
    byte = sum(one << shift for shift in range(0, 8, bits)) & 255
    shape = (rows, columns // block, block * bits // 8)
    codes = helper.make_tensor("codes", TensorProto.UINT8, shape, bytes([byte]) * int(np.prod(shape)), raw=True)
    scales = np.random.default_rng(0).random((rows, columns // block), np.float32).astype(np.float16).astype(np.float32)
    expected = x @ scales.repeat(block, 1).T

    def probe(device: str) -> str:
        dtype = "float16" if device == "cuda" else "float32"
        said: dict[str, Any] = {"K": columns, "N": rows, "bits": bits, "block_size": block}
        node = helper.make_node("MatMulNBits", ["x_cast", "codes", "scales"], ["y_cast"], domain="com.microsoft", **said)
        own = helper.make_tensor("scales", CAST[dtype], scales.shape, scales.ravel())
        return _run([node], {"x": x}, expected, dtype, 21, 10, [codes, own])(device)

    return probe


def _run(
    nodes: list[Any],
    feeds: dict[str, Array],
    expected: Array,
    dtype: str,
    opset: int = 24,
    ir_version: int = 11,
    constants: list[Any] | None = None,
) -> Callable[[str], str]:
    def probe(device: str) -> str:
        return outcome(model_of(nodes, feeds, dtype, opset, ir_version, constants), feeds, expected, device, dtype)

    return probe


OPERATORS = [
    *(
        Fact(
            f"Attention-{opset} {dtype}",
            "runs",
            _attention(dtype, opset),
            "right",
            "refused" if dtype == "bfloat16" else "right",
        )
        for opset in (23, 24)
        for dtype in CAST
    ),
    Fact("RMSNormalization float16", "runs", _norm("float16"), "right", "right"),
    Fact("RMSNormalization bfloat16", "unsure", _norm("bfloat16"), "", ""),
    Fact("Swish float16", "no kernel, its function is used", _swish("float16"), "right", "right"),
    Fact("Softmax of -inf", "no number", _masked_softmax, "not finite", "not finite"),
    Fact("opset 24, IR 11", "accepted", _opset(24, 11), "right", "right"),
    Fact("opset 26, IR 13", "accepted", _opset(26, 13), "right", "right"),
    Fact("opset 27", "refused", _opset(27, 13), "refused", "refused"),
    Fact("IR 14", "refused", _opset(24, 14), "refused", "refused"),
    Fact("DequantizeLinear int4 [E, K, N]", "unsure on CUDA", _blocked(TensorProto.INT4, 3, 3.0), "", "right"),
    Fact("DequantizeLinear int8 [E, K, N]", "unsure on CUDA", _blocked(TensorProto.INT8, 3, 3.0), "", "right"),
    Fact("DequantizeLinear fp8 [E, K, N]", "unsure on CUDA", _blocked(TensorProto.FLOAT8E4M3FN, 0x38, 1.0), "", "right"),
    Fact("DequantizeLinear fp4 [E, K, N]", "none on the CPU", _blocked(TensorProto.FLOAT4E2M1, 2, 1.0), "", "refused"),
    *(
        Fact(f"MatMulNBits {bits} bits, block {block}", "runs", _matmul_nbits(bits, block), "right", "right")
        for bits in (4, 8)
        for block in (32, 128)
    ),
]
