"""What TensorRT wants of quantised weights.

The rules are those of IDequantizeLayer and of its ONNX parser: symmetric, one scale for all, for each index of one axis, or
for each block along one axis, which is the last or the one before it. A block's size is never said: the parser divides the
sizes of weight and scales.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from mocomp.capability import Gap
from mocomp.capability.graphs import array_of, input_of, integer, is_constant, name_of, sizes_of
from mocomp.capability.tensorrt_rules import Asked, rule

TYPES = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1)
NARROW = (ir.DataType.INT4, ir.DataType.FLOAT4E2M1)
SYMMETRIC = "--quantize int8 or int4:128, without asym"
TAKEN = "--quantize int8, int4:128, fp8 or nvfp4"


@rule("QuantizeLinear", "DequantizeLinear")
def scales(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Types, zero point, and the shape of the scales."""
    for why, instead in _reasons(node):
        yield Gap(_where(node), why, instead)


@rule("DequantizeLinear")
def weights_alone(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """INT4 is for weights."""
    codes = node.inputs[0]
    if codes is not None and codes.dtype is ir.DataType.INT4 and not is_constant(codes):
        yield Gap(_where(node), "INT4 that is no weight; activations are taken in INT8 and FP8", "--quantize int8")


def _reasons(node: ir.Node) -> Iterator[tuple[str, str]]:
    quantises = node.op_type == "QuantizeLinear"
    kind = _quantised_type(node)
    if kind not in TYPES:
        yield f"{'no known type' if kind is None else kind.name}, and not one of {', '.join(t.name for t in TYPES)}", TAKEN
    if not quantises and integer(node, "output_dtype") == 0:
        yield "the type of its output is not said", "set output_dtype"
    if _has_zero_point(node):
        yield "its zero point is not 0", SYMMETRIC
    shape, sizes = (sizes_of(value) for value in node.inputs[:2])
    if sizes is None or (not quantises and shape is None):
        yield "its sizes are not constant", ""
        return
    if not quantises and kind is not None and kind in NARROW and shape and shape[-1] % 2:
        yield f"rows of {shape[-1]}, an odd number of {kind.name}", "--quantize int8"
    yield from _reasons_of_scale(node, shape, sizes)


def _reasons_of_scale(node: ir.Node, shape: tuple[int, ...] | None, sizes: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """Whether scales of these `sizes` are one number, one for each index of an axis, or have one dimension of blocks."""
    if len(sizes) < 2:
        return
    if shape is None or len(sizes) != len(shape):
        yield f"scales {list(sizes)} have another number of dimensions than what they scale", ""
        return
    blocked = [i for i, (size, count) in enumerate(zip(shape, sizes, strict=True)) if size != count]
    if len(blocked) > 1:
        yield f"scales {list(sizes)} of {list(shape)} have {len(blocked)} blocked dimensions, not one", "blocks along columns"
        return
    axis = blocked[0] if blocked else len(shape) - 1
    if axis < len(shape) - 2:
        why = f"blocks along dimension {axis} of {len(shape)}, neither the last nor the one before"
        yield why, "blocks along columns"
        return
    size = integer(node, "block_size")
    if size * sizes[axis] != shape[axis]:
        why = f"{sizes[axis]} blocks of {size} do not fill {shape[axis]}, and TensorRT takes them for equal parts"
        yield why, "a --group-size that divides the rows"


def _quantised_type(node: ir.Node) -> ir.DataType | None:
    value = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    return value.dtype if value is not None else None


def _has_zero_point(node: ir.Node) -> bool:
    """Numbers that are not here may be anything."""
    zero = input_of(node, 2)
    if zero is None:
        return False
    numbers = array_of(zero, largest=1 << 30)
    return numbers is None or bool(numbers.astype("float32").any())


def _where(node: ir.Node) -> str:
    """The weight, where it has a name."""
    value = node.inputs[0]
    return value.name if value is not None and value.name else name_of(node)
