"""The weights of an artifact as DequantizeLinear gives them: the text of the ONNX standard, in numpy.

It shares no code with what packs them, so that reading back proves the packing.
Dimension letters: E experts, N rows, K columns, G blocks of columns, F expert width, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from mocomp.lowering.initializers import numbers


def weight(model: ir.Model, name: str) -> np.ndarray:
    """The weight [N, K] or [E, N, K] float32 of that name, unpacked if it is packed. Where what it multiplies is multiplied
    before, so is the weight."""
    initializers = model.graph.initializers
    if f"{name}.codes" not in initializers:
        return _array(initializers[name])
    node = next(use.node for use in initializers[f"{name}.codes"].uses())
    unpacked = dequantised(node)
    factor = initializers.get(f"{name}.inputs")
    return unpacked if factor is None else unpacked * _array(factor)


def banks(model: ir.Model, named: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """(layer, w_in [E, F or 2F, H], w_out [E, H, F]) of each layer whose two weights are `named`."""
    for layer, names in named.items():
        w_in, w_out = (weight(model, name) for name in names)
        yield layer, w_in, w_out


def linears(model: ir.Model) -> dict[str, np.ndarray]:
    """Each weight [N, K] that is packed, by its name."""
    stored = [value for name, value in model.graph.initializers.items() if name.endswith(".codes") and _is_unpacked(value)]
    names = [str(value.name).removesuffix(".codes") for value in stored if len(value.shape or ()) == 2]
    return {name: weight(model, name) for name in names}


def _is_unpacked(value: ir.Value) -> bool:
    """Whether codes are what a DequantizeLinear reads: a user's own parameter may be called `codes`."""
    return any(use.node.op_type == "DequantizeLinear" for use in value.uses())


def dequantised(node: ir.Node) -> np.ndarray:
    """What a DequantizeLinear node of constants gives: (x - zero point) * scale, float32."""
    codes, scales, *zeros = node.inputs
    assert codes is not None and scales is not None
    x = _array(codes)
    producer = scales.producer()
    scale = _array(scales) if producer is None else dequantised(producer)
    x = x - _along(node, _array(zeros[0]), x.shape) if zeros and zeros[0] is not None else x
    return x * _along(node, scale, x.shape)


def _along(node: ir.Node, values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Scales or zero points as `shape` wants them: one for all, one for each index of the axis, one for each block of it."""
    axis, size = (node.attributes[name].as_int() if name in node.attributes else 0 for name in ("axis", "block_size"))
    if size:
        return np.repeat(values, size, axis).take(np.arange(shape[axis]), axis)
    return values.reshape([-1 if i == axis else 1 for i in range(len(shape))]) if values.ndim else values


def _array(value: ir.Value) -> np.ndarray:
    assert value.const_value is not None
    return numbers(value.const_value).astype(np.float32)
