"""Graphs of one MoE or QMoE node, fed with float32 whatever its type, and the numbers that it should give.

Dimension letters: T tokens, H hidden, F expert width, E experts, K chosen, N rows, G columns that share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import TensorProto, helper

Array = np.ndarray
OPSET, IR_VERSION = 21, 10
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
"""The values of 4-bit floats without their sign, which is the highest bit (OCP Microscaling Formats, version 1.0)."""
QUANTISED_INPUTS = {"fc1": 2, "fc2": 5}
QUANTISED_ARITY = 21


@dataclass
class Bank:
    """Random experts with SwiGLU: x [T, H], logits [T, E], gate and up [E, F, H], down [E, H, F], float32."""

    tokens: int = 8
    hidden: int = 128
    width: int = 128
    experts: int = 8
    k: int = 2
    seed: int = 0
    x: Array = field(init=False)
    logits: Array = field(init=False)
    gate: Array = field(init=False)
    up: Array = field(init=False)
    down: Array = field(init=False)

    def __post_init__(self) -> None:
        random = np.random.default_rng(self.seed)
        e, h, f = self.experts, self.hidden, self.width
        self.x = random.standard_normal((self.tokens, h), np.float32)
        self.logits = 2 * random.standard_normal((self.tokens, e), np.float32)
        self.gate, self.up = (random.standard_normal((e, f, h), np.float32) / h**0.5 for _ in range(2))
        self.down = random.standard_normal((e, h, f), np.float32) / f**0.5

    def interleaved(self) -> Array:
        """Gate and up [E, 2F, H] row by row: what `swiglu_fusion=1` means."""
        return np.stack([self.gate, self.up], 2).reshape(self.experts, -1, self.hidden)

    def concatenated(self) -> Array:
        """Gate, then up [E, 2F, H]: what `swiglu_fusion=2` means."""
        return np.concatenate([self.gate, self.up], 1)

    def weights(self, normalise: bool = True) -> Array:
        """[T, E]: the softmax over all experts of the K largest logits, divided by their sum when `normalise`."""
        with np.errstate(invalid="ignore"):
            shares = np.exp(self.logits - self.logits.max(-1, keepdims=True, initial=-np.inf))
        shares = np.nan_to_num(shares) / np.maximum(np.nan_to_num(shares).sum(-1, keepdims=True), 1e-30)
        chosen = np.argsort(-self.logits, -1, kind="stable")[:, : self.k]
        kept = np.zeros_like(shares)
        np.put_along_axis(kept, chosen, np.take_along_axis(shares, chosen, -1), -1)
        return kept / np.maximum(kept.sum(-1, keepdims=True), 1e-30) if normalise else kept

    def expected(self, weights: Array | None = None, alpha: float = 1.0, beta: float = 0.0, limit: float = np.inf) -> Array:
        """y [T, H], with the weights [T, E] that are given, or those of softmax divided by their sum."""
        weights = self.weights() if weights is None else weights
        g = np.minimum(np.einsum("th,efh->tef", self.x, self.gate), limit)
        up = np.clip(np.einsum("th,efh->tef", self.x, self.up), -limit, limit)
        inner = g / (1 + np.exp(-alpha * g)) * (up + beta)
        return np.einsum("te,tef,ehf->th", weights, inner, self.down)


def moe(bank: Bank, dtype: str, fusion: int = 1, fc3: bool = False, attributes: dict[str, Any] | None = None) -> bytes:
    """A MoE node in `dtype`; with `fc3` gate and up are inputs of their own and the activation is SiLU."""
    first = bank.gate if fc3 else bank.concatenated() if fusion == 2 else bank.interleaved()
    values = {"fc1": first, "fc2": bank.down} | ({"fc3": bank.up} if fc3 else {})
    names = ["x", "logits", "fc1", "", "fc2", "", *(["fc3", ""] if fc3 else [])]
    said: dict[str, Any] = {"k": bank.k, "normalize_routing_weights": 1}
    said |= {"activation_type": "silu"} if fc3 else _swiglu(fusion)
    constants = [_tensor(name, value, dtype) for name, value in values.items()]
    return _graph("MoE", names, said | (attributes or {}), constants, dtype)


def qmoe(
    bank: Bank,
    dtype: str,
    bits: int = 4,
    block: int = 64,
    prepacked: int | None = 0,
    zero_points: bool = False,
    router_weights: bool = False,
    attributes: dict[str, Any] | None = None,
) -> bytes:
    """A QMoE node of integers, whose weights the bank then has itself; block 0 is a scale per row, prepacked None unsaid."""
    parts = {
        "fc1": quantise(bank.interleaved(), bits, block, zero_points),
        "fc2": quantise(bank.down, bits, block, zero_points),
    }
    rows = parts["fc1"][3]
    bank.gate, bank.up, bank.down = rows[:, ::2], rows[:, 1::2], parts["fc2"][3]
    names, constants = ["x", "logits", *[""] * (QUANTISED_ARITY - 2)], []
    for slot, (name, at) in enumerate(QUANTISED_INPUTS.items()):
        codes, scales, points, _ = parts[name]
        names[at], names[at + 1] = name, f"{name}_scales"
        constants += [_raw(name, codes, TensorProto.UINT8), _tensor(f"{name}_scales", scales, dtype)]
        if points is not None:
            names[11 + slot] = f"{name}_zp"
            constants.append(_raw(f"{name}_zp", points, TensorProto.UINT8))
    if router_weights:
        names[14] = "router_weights"
    said: dict[str, Any] = {"k": bank.k, "normalize_routing_weights": 1, "expert_weight_bits": bits, **_swiglu(1)}
    said |= {"block_size": block} if block else {}
    said |= {} if prepacked is None else {"weights_prepacked": prepacked}
    return _graph("QMoE", names, said | (attributes or {}), constants, dtype, router_weights)


def float_qmoe(bank: Bank, dtype: str, kind: str) -> bytes:
    """A QMoE node of `nvfp4`, `fp4` (MXFP4), `fp8` or `wfp4afp8` weights, all scales 1 but the global ones of 1/16."""
    names, constants = ["x", "logits", *[""] * (QUANTISED_ARITY - 2)], []
    random = np.random.default_rng(1)
    shapes = {"fc1": (bank.experts, 2 * bank.width, bank.hidden), "fc2": (bank.experts, bank.hidden, bank.width)}
    for slot, (name, shape) in enumerate(shapes.items()):
        at = QUANTISED_INPUTS[name]
        codes, values = _float_codes(random, shape, kind)
        if name == "fc1":
            bank.gate, bank.up = values[:, ::2], values[:, 1::2]
        else:
            bank.down = values
        names[at], names[15 + slot] = name, f"{name}_global"
        constants += [_raw(name, codes, TensorProto.FLOAT8E4M3FN if kind == "fp8" else TensorProto.UINT8)]
        constants += [_tensor(f"{name}_global", np.full(bank.experts, 1 / 16, np.float32), "float32")]
        if kind != "fp8":
            names[at + 1] = f"{name}_scales"
            group, number, one = (16, TensorProto.FLOAT8E4M3FN, 0x38) if kind == "nvfp4" else (32, TensorProto.FLOAT8E8M0, 127)
            ones = np.full((*shape[:2], shape[2] // group), one, np.uint8)
            constants.append(_raw(f"{name}_scales", ones, number))
    said = {"k": bank.k, "normalize_routing_weights": 1, "quant_type": kind, "weights_prepacked": 0, **_swiglu(1)}
    said |= {"expert_weight_bits": 8 if kind == "fp8" else 4, **({"block_size": 16} if kind == "nvfp4" else {})}
    return _graph("QMoE", names, said, constants, dtype)


def quantise(w: Array, bits: int, block: int, zero_points: bool) -> tuple[Array, Array, Array | None, Array]:
    """w [E, N, H] -> (codes packed low bits first, scales [E, N] or [E, N, H/G], packed zero points, what they stand for)."""
    e, n, h = w.shape
    grouped = w.reshape(e, n, -1, block or h)
    middle = 1 << (bits - 1)
    scales = np.maximum(np.abs(grouped).max(-1, keepdims=True), 1e-6) / (middle - 0.5 if bits > 2 else 1.5)
    scales = scales.astype(np.float16).astype(np.float32)
    point = middle + 1 if zero_points else middle
    codes = np.clip(np.rint(grouped / scales) + point, 0, (1 << bits) - 1)
    values = ((codes - point) * scales).reshape(w.shape)
    packed = _pack(codes.reshape(e, n, h).astype(np.uint8), bits)
    shape = (e, n, h // block) if block else (e, n)  # those of whole rows are packed along N
    points = _pack(np.full(shape, point, np.uint8), bits) if zero_points else None
    return packed, scales[..., 0] if block else scales[:, :, 0, 0], points, values


def _pack(codes: Array, bits: int) -> Array:
    """Codes [..., H] -> bytes [..., ceil(H * bits / 8)], the first in the lowest bits."""
    per_byte = 8 // bits
    missing = -codes.shape[-1] % per_byte
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, missing)])
    grouped = codes.reshape(*codes.shape[:-1], -1, per_byte)
    return (grouped << (bits * np.arange(per_byte, dtype=np.uint8))).sum(-1).astype(np.uint8)


def _float_codes(random: np.random.Generator, shape: tuple[int, ...], kind: str) -> tuple[Array, Array]:
    """(codes as bytes, the values that they stand for) of random floats of 8 or 4 bits, the global scale included."""
    codes = random.integers(0, 16, shape, dtype=np.uint8)
    if kind == "fp8":  # 0x30 to 0x37 are 0.5 to 0.9375, the eighth bit is the sign
        return (codes & 7) + 0x30 + ((codes & 8) << 4), np.where(codes & 8, -1, 1) * (0.5 + (codes & 7) / 16) / 16
    values = np.where(codes & 8, -1, 1) * E2M1[codes & 7] / 16
    return _pack(codes, 4), values.astype(np.float32)


def _swiglu(fusion: int) -> dict[str, Any]:
    return {"activation_type": "swiglu", "activation_alpha": 1.0, "activation_beta": 0.0, "swiglu_fusion": fusion}


def _tensor(name: str, value: Array, dtype: str) -> Any:
    number = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[dtype]
    return helper.make_tensor(name, number, value.shape, value.ravel().astype(np.float32))


def _raw(name: str, value: Array, number: int) -> Any:
    shape = value.shape
    return helper.make_tensor(name, number, shape, np.ascontiguousarray(value, np.uint8).tobytes(), raw=True)


def _graph(
    operator: str, names: list[str], attributes: dict[str, Any], constants: list[Any], dtype: str, weights: bool = False
) -> bytes:
    """x and logits, and router_weights, float32 in; y float32 out; the node between two casts in `dtype`."""
    number = _tensor("", np.zeros(1), dtype).data_type
    fed = ["x", "logits", *(["router_weights"] if weights else [])]
    casts = [helper.make_node("Cast", [name], [f"{name}_cast"], to=number) for name in fed]
    inner = [f"{name}_cast" if name in fed else name for name in names]
    while not inner[-1]:
        inner.pop()
    node = helper.make_node(operator, inner, ["y_cast"], domain="com.microsoft", **attributes)
    back = helper.make_node("Cast", ["y_cast"], ["y"], to=TensorProto.FLOAT)
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["T", None]) for name in fed]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["T", None])
    graph = helper.make_graph([*casts, node, back], "mixture", inputs, [output], constants)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
