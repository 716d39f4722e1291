"""What TensorRT 11 wants of quantised weights, checked in a graph without it.

The rules are those of IDequantizeLayer and of its ONNX parser: symmetric, one scale for all, for each index of one axis, or
for each block along one axis, which is the last or the one before it. A block's size is never said: the parser divides the
sizes of weight and scales.
"""

from __future__ import annotations

import onnx_ir as ir

TYPES = (ir.DataType.INT8, ir.DataType.INT4, ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT4E2M1)
NARROW = (ir.DataType.INT4, ir.DataType.FLOAT4E2M1)


def tensorrt_gaps(model: ir.Model) -> list[str]:
    """Why TensorRT would not take each QuantizeLinear or DequantizeLinear node of a model, or would take it for another; one
    line for each reason."""
    nodes = [node for node in model.graph.all_nodes() if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return [f"{_name(node)}: {reason}" for node in nodes for reason in _reasons(node)]


def _reasons(node: ir.Node) -> list[str]:
    quantises = node.op_type == "QuantizeLinear"
    kind = _quantised_type(node)
    reasons = []
    if kind not in TYPES:
        reasons.append(f"{'no known type' if kind is None else kind.name}, and not one of {', '.join(t.name for t in TYPES)}")
    if not quantises and _number(node, "output_dtype") == 0:
        reasons.append("the type of its output is not said")
    if _has_zero_point(node):
        reasons.append("its zero point is not 0")
    shapes = [_sizes(value) for value in node.inputs[:2]]
    if shapes[1] is None or (not quantises and shapes[0] is None):
        return [*reasons, "its sizes are not constant"]
    if not quantises and kind is not None and kind in NARROW and shapes[0] and shapes[0][-1] % 2:
        reasons.append(f"rows of {shapes[0][-1]}, an odd number of {kind.name}")
    return [*reasons, *_reasons_of_scale(node, *shapes)]


def _reasons_of_scale(node: ir.Node, shape: tuple[int, ...] | None, scales: tuple[int, ...]) -> list[str]:
    """Whether `scales` is one number, one for each index of an axis, or has one dimension of blocks."""
    if len(scales) < 2:
        return []
    if shape is None or len(scales) != len(shape):
        return [f"scales {list(scales)} have another number of dimensions than what they scale"]
    blocked = [i for i, (size, count) in enumerate(zip(shape, scales, strict=True)) if size != count]
    if len(blocked) > 1:
        return [f"scales {list(scales)} of {list(shape)} have {len(blocked)} blocked dimensions, not one"]
    axis = blocked[0] if blocked else len(shape) - 1
    if axis < len(shape) - 2:
        return [f"blocks along dimension {axis} of {len(shape)}, neither the last nor the one before"]
    size = _number(node, "block_size")
    if size * scales[axis] != shape[axis]:
        return [f"{scales[axis]} blocks of {size} do not fill {shape[axis]}, and TensorRT takes them for equal parts"]
    return []


def _quantised_type(node: ir.Node) -> ir.DataType | None:
    value = node.inputs[0] if node.op_type == "DequantizeLinear" else node.outputs[0]
    return value.dtype if value is not None else None


def _has_zero_point(node: ir.Node) -> bool:
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is None:
        return False
    return zero.const_value is None or bool(zero.const_value.numpy().astype("float32").any())


def _sizes(value: ir.Value | None) -> tuple[int, ...] | None:
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def _number(node: ir.Node, name: str) -> int:
    return node.attributes[name].as_int() if name in node.attributes else 0


def _name(node: ir.Node) -> str:
    return str((node.inputs[0].name if node.inputs[0] is not None else None) or node.name)
