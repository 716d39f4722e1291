"""Packed weights in the types of ONNX: integers and floats of 2, 4 and 8 bits, as DequantizeLinear reads them.

ONNX packs what is below 8 bits as mocomp does, the first number in the lowest bits, but through the whole tensor: a row does
not begin at a byte of its own. Signed integers are in two's complement. Dimension letters: E experts, N rows, K columns,
G blocks of columns.
"""

from __future__ import annotations

import math

import onnx_ir as ir
import torch

from mocomp.lowering.standard_ops import axis_and_block
from mocomp.quant.formats import Format, pack_bits, unpack_bits
from mocomp.quant.integer import Integer
from mocomp.weights import recipes
from mocomp.weights.arithmetic import elementwise, pick
from mocomp.weights.recipes import Apply, Recipe

SIGNS = {2: 0b10101010, 4: 0b10001000, 8: 0b10000000}
"""The highest bit of each code in a byte: turning it makes code - 2^(bits - 1) of a code, in two's complement."""
OTHERS = {"fp8": ir.DataType.FLOAT8E4M3FN, "nvfp4": ir.DataType.FLOAT4E2M1}
SCALES = {torch.float32: ir.DataType.FLOAT, torch.float8_e4m3fn: ir.DataType.FLOAT8E4M3FN}


def arrange(
    model: ir.Model, weights: dict[str, Recipe], packed: dict[str, tuple[Format, tuple[int, ...]]]
) -> dict[str, Recipe]:
    """The recipes of all weights, those in `packed`, (format, shape) by name, as ONNX packs them; their types and shapes in
    `model` as well."""
    arranged = dict(weights)

    def put(name: str, recipe: Recipe, kind: ir.DataType, shape: tuple[int, ...]) -> None:
        value = model.graph.initializers[name]
        arranged[name], value.dtype, value.shape = recipe, kind, ir.Shape(shape)

    for name, (form, shape) in packed.items():
        codes, scales, zeros = (weights.get(f"{name}.{part}") for part in ("codes", "scales", "zeros"))
        assert codes is not None and scales is not None
        put(f"{name}.codes", _codes(codes, form, shape), code_type(form), shape)
        spread = _spread(scales, form, shape)
        put(f"{name}.scales", spread, SCALES[scales.dtype], spread.shape)
        if zeros is not None:
            put(f"{name}.zeros", _flat(zeros, form.bits, scales.shape), code_type(form), spread.shape)
    return arranged


def code_type(form: Format) -> ir.DataType:
    """The ONNX type of a format's codes: unsigned integers have zero points, and signed ones have none."""
    if isinstance(form, Integer):
        return ir.DataType[f"{'' if form.symmetric else 'U'}INT{form.bits}"]
    return OTHERS[form.name]


def _codes(codes: Recipe, form: Format, shape: tuple[int, ...]) -> Recipe:
    if isinstance(form, Integer) and form.symmetric:
        codes = elementwise(lambda packed: packed ^ SIGNS[form.bits], codes)
    return _flat(codes, form.bits, shape)


def _flat(packed: Recipe, bits: int, shape: tuple[int, ...]) -> Recipe:
    """Rows that each fill up their last byte [..., bytes] -> the numbers [..., K] of `shape` one after the other."""
    if shape[-1] * bits % 8 == 0:
        return packed
    size = -(-math.prod(shape) * bits // 8)
    return Apply((size,), packed.dtype, lambda p: pack_bits(unpack_bits(p[0], bits, shape[-1]).flatten(), bits), (packed,))


def _spread(scales: Recipe, form: Format, shape: tuple[int, ...]) -> Recipe:
    """[..., N', G] as the axis wants them: one number an index, or [..., N, G] where several rows shared one."""
    axis, block = axis_and_block(form, shape)
    rows = form.tile[0]
    if block and rows > 1:
        return pick(scales, len(shape) - 2, [i // rows for i in range(shape[-2])])
    if block:
        return scales
    per_tensor = rows == 0 and len(shape) == 2
    return recipes.reshape(scales, () if per_tensor else (shape[axis],))
