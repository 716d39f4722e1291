"""The ops of mocomp as operators of ONNX Runtime.

What the operators compute was established by running ONNX Runtime 1.31 (docs/decisions/0003): `MoE` takes logits,
keeps the k largest, and weighs by their softmax; it wants gate and up rows interleaved.
"""

from __future__ import annotations

from typing import Any

import torch
from onnxscript import opset23 as op

from mocomp.experts import Expert
from mocomp.ir.rewrite import MOCOMP
from mocomp.ir.specs import parse
from mocomp.lowering.contrib import contrib
from mocomp.quant import formats
from mocomp.quant.formats import Format
from mocomp.quant.integer import Integer
from mocomp.routers import Router

PROVIDERS = {
    "nvfp4": "the CUDA provider has it (quant_type nvfp4)",
    "mxfp4": "the CUDA provider has it, and torch's exporter to ONNX not the type of its scales, so take nvfp4 for that one",
    "fp8": "the CUDA provider has it only where it was built with it (quant_type fp8), which mocomp does not count on",
}
"""Who runs what the CPU provider does not, by the name of a format (onnxruntime 1.31, docs/contrib_ops/cuda/moe_qmoe.md)."""
QUANT_TYPES = {"nvfp4": "nvfp4"}
"""What QMoE calls formats that are floats of 4 bits. It has `fp4`, too, which is mxfp4, but torch's exporter to ONNX knows no
float8_e8m0, the type of its scales."""
ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu", "relu": "relu", "identity": "identity"}


def has_operator(expert: Expert) -> bool:
    """Whether MoE computes this kind of expert on the CPU: SwiGLU with its parameters, or one of its activations."""
    return expert.activation == "silu" if expert.gated else expert.activation in ACTIVATIONS


def has_mixture(stored: list[tuple[Format, tuple[int, ...]]]) -> str | None:
    """Why QMoE of the CPU provider does not take weights of these formats and shapes (of w_in, of w_out), or None."""
    for form, shape in stored:
        if not isinstance(form, Integer):
            return f"the CPU provider has no QMoE of {form.text}; {PROVIDERS.get(form.name, 'no provider has one')}"
        if shape[-1] * form.bits % 8:
            return f"a row of {shape[-1]} columns in {form.text} does not fill whole bytes, which QMoE wants"
        if form.block and shape[-1] % form.block:
            return f"a block of {form.block} does not divide {shape[-1]} columns; QMoE wants that, take a smaller --group-size"
    if (stored[0][0].block, stored[0][0].bits) != (stored[1][0].block, stored[1][0].bits):
        return f"QMoE of the CPU provider has one width and block size, not {stored[0][0].text} and {stored[1][0].text}"
    return None


def has_linear(form: Format, shape: tuple[int, ...]) -> str | None:
    """Why MatMulNBits of the CPU provider does not take a weight of that format and shape, or None."""
    if not isinstance(form, Integer) or not form.block:
        return f"MatMulNBits of the CPU provider takes integers in blocks, not {form.text}"
    if shape[-1] % form.block:
        return f"a block of {form.block} does not divide {shape[-1]} columns"
    return None


def _mixture(x: Any, logits: Any, tensors: Any, w_in: Any, b_in: Any, w_out: Any, b_out: Any, router: str, expert: str) -> Any:
    kind: Router = parse("mocomp.routers", "Router", router)
    form = kind.as_softmax()
    assert form is not None and form.over_chosen  # softmax_routing gives nothing else
    y = contrib().MoE(x, logits, w_in, b_in, w_out, b_out, k=kind.k, **_attributes(expert))
    return y if form.scale == 1.0 else op.Mul(y, op.Constant(value_float=form.scale))


def _quantized_mixture(
    x: Any, logits: Any, w_in: Any, b_in: Any, w_out: Any, b_out: Any, router: str, expert: str, *specs: str
) -> Any:
    kind: Router = parse("mocomp.routers", "Router", router)
    first = formats.parse(specs[0])  # both of one width and block: see has_mixture
    block = {"block_size": first.block} if first.block else {}
    form = kind.as_softmax()
    assert form is not None and form.over_chosen
    if first.name in QUANT_TYPES:
        after, packing = (*[None] * 4, w_in[2], w_out[2]), {"quant_type": QUANT_TYPES[first.name]}
    else:
        after, packing = tuple(w[2] if len(w) > 2 else None for w in (w_in, w_out)), {}
    inputs = (x, logits, w_in[0], w_in[1], b_in, w_out[0], w_out[1], b_out, None, None, None, *after)
    packing |= {"expert_weight_bits": first.bits, "weights_prepacked": 0} | block
    y = contrib().QMoE(*inputs, k=kind.k, **_attributes(expert), **packing)
    return y if form.scale == 1.0 else op.Mul(y, op.Constant(value_float=form.scale))


def _quantized_linear(x: Any, weight: Any, bias: Any, spec: str) -> Any:
    form = formats.parse(spec)
    sizes = {"K": int(x.shape[-1]), "N": int(weight[0].shape[0])}
    zeros = weight[2] if len(weight) > 2 else None
    return contrib().MatMulNBits(x, weight[0], weight[1], zeros, None, bias, **sizes, bits=form.bits, block_size=form.block)


def _attributes(spec: str) -> dict[str, Any]:
    """Weights are always divided by their sum: without that, ONNX Runtime 1.31 gives wrong numbers whenever it lets
    the operator write over its input (onnxruntime#33866, reproduced in tests/targets/test_onnxruntime_moe.py)."""
    expert: Any = parse("mocomp.experts", "Expert", spec)
    attributes: dict[str, Any] = {"normalize_routing_weights": 1}
    if not expert.gated:
        return attributes | {"activation_type": ACTIVATIONS[expert.activation]}
    limit = {"swiglu_limit": expert.limit} if expert.limit else {}
    swiglu = {"activation_type": "swiglu", "swiglu_fusion": 1}
    return attributes | swiglu | limit | {"activation_alpha": expert.alpha, "activation_beta": expert.beta}


def _attention(q: Any, k: Any, v: Any, mask: Any, sinks: Any, scale: float, softcap: float) -> Any:
    if sinks is None:
        y = op.Attention(q, k, v, mask, scale=scale, softcap=softcap)
        return op.Transpose(y[0] if isinstance(y, (tuple, list)) else y, perm=[0, 2, 1, 3])
    return _attention_with_sinks(q, k, v, mask, sinks, scale, softcap)


def _attention_with_sinks(q: Any, k: Any, v: Any, mask: Any, sinks: Any, scale: float, softcap: float) -> Any:
    """The standard op has no sinks: products with the query groups folded into rows, softmax over one more column."""
    (heads, width), groups = (int(q.shape[1]), int(q.shape[3])), int(k.shape[1])
    grouped = op.Reshape(q, op.Constant(value_ints=[0, groups, -1, width]))
    scores = op.MatMul(op.Mul(grouped, op.Constant(value_float=scale)), op.Transpose(k, perm=[0, 1, 3, 2]))
    if softcap:
        cap = op.Constant(value_float=softcap)
        scores = op.Mul(op.Tanh(op.Div(scores, cap)), cap)
    rows = op.Concat(op.Constant(value_ints=[0, heads]), op.Shape(q, start=2, end=3), op.Constant(value_ints=[-1]), axis=0)
    scores = op.Reshape(scores, rows)
    scores = scores if mask is None else op.Add(scores, mask)
    sink = op.Reshape(sinks, op.Constant(value_ints=[1, -1, 1, 1]))
    one = op.Constant(value_ints=[1])
    column = op.Expand(sink, op.Concat(op.Shape(q, start=0, end=3), one, axis=0))
    weights = op.Softmax(op.Concat(scores, column, axis=-1), axis=-1)
    last = op.Constant(value_ints=[-1])
    weights = op.Slice(weights, op.Constant(value_ints=[0]), last, last)
    shape = op.Concat(op.Constant(value_ints=[0, groups, -1]), op.Shape(k, start=2, end=3), axis=0)
    y = op.MatMul(op.Reshape(weights, shape), v)
    back = op.Concat(op.Constant(value_ints=[0, heads]), op.Shape(q, start=2, end=3), op.Constant(value_ints=[-1]), axis=0)
    return op.Transpose(op.Reshape(y, back), perm=[0, 2, 1, 3])


def _rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    return op.RMSNormalization(x, weight, axis=-1, epsilon=epsilon)


def _rotary(x: Any, cos: Any, sin: Any) -> Any:
    """The op takes each angle once, [B, S, D / 2]; both slices are shared by all layers."""
    half = op.Constant(value_ints=[int(x.shape[-1]) // 2])
    first = [
        op.Slice(op.Squeeze(a, op.Constant(value_ints=[1])), op.Constant(value_ints=[0]), half, op.Constant(value_ints=[-1]))
        for a in (cos, sin)
    ]
    return op.RotaryEmbedding(x, *first)


def _index_select(x: Any, dim: int, index: Any) -> Any:
    """Torch's own translation reshapes every index to one dimension, which all but a single number have already."""
    single = index.shape is None or index.shape.rank() == 0
    return op.Gather(x, op.Reshape(index, op.Constant(value_ints=[-1])) if single else index, axis=dim)


TRANSLATIONS = {
    torch.ops.aten.index_select.default: _index_select,
    MOCOMP.mixture.default: _mixture,
    MOCOMP.quantized_mixture.default: _quantized_mixture,
    MOCOMP.quantized_linear.default: _quantized_linear,
    MOCOMP.attention.default: _attention,
    MOCOMP.rms_norm.default: _rms_norm,
    MOCOMP.rotary.default: _rotary,
}
