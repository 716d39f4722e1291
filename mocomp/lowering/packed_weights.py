"""The weights of an artifact as its operators read them: the documentation of ONNX Runtime's QMoE and MatMulNBits, in numpy.

It shares no code with what packs them, so that reading back proves the packing.
Dimension letters: E experts, N rows, K columns, G blocks of columns, F expert width, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from mocomp.lowering.initializers import numbers

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
"""What a code of `quant_type` fp4 and nvfp4 is before it is scaled: the OCP Microscaling specification 1.0, FP4."""


def read(node: ir.Node) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(expert, w_in [F or 2F, H] gate rows then up rows, w_out [H, F]), float32, of each expert of a MoE or QMoE node.

    Where x is multiplied before it comes in, so is w_in.
    """
    swiglu = "swiglu_fusion" in node.attributes
    packed = node.op_type == "QMoE"
    first, second = ((2, 3, 11, 15), (5, 6, 12, 16)) if packed else ((2,), (4,))
    factor = factor_of_inputs(node)
    banks = [[_array(node, i) for i in inputs] for inputs in (first, second)]
    for expert in range(banks[0][0].shape[0]):  # type: ignore[union-attr]
        w_in, w_out = (_one(node, bank, expert) if packed else bank[0][expert] for bank in banks)  # type: ignore[index]
        w_in = np.concatenate([w_in[0::2], w_in[1::2]]) if swiglu else w_in
        yield expert, w_in if factor is None else w_in * factor, w_out


def factor_of_inputs(node: ir.Node) -> np.ndarray | None:
    """What x is multiplied by for the sake of quantised weights, [H], or None."""
    x = node.inputs[0].producer() if node.inputs[0] is not None else None
    if x is None or x.op_type != "Mul":
        return None
    factors = [value for value in x.inputs if value is not None and str(value.name).endswith(".inputs")]
    return numbers(factors[0].const_value).astype(np.float32) if factors else None  # type: ignore[arg-type]


def linears(model: ir.Model) -> dict[str, np.ndarray]:
    """The weight [N, K] float32 of each MatMulNBits node, by its name."""
    found = {}
    for node in model.graph:
        if node.op_type != "MatMulNBits":
            continue
        codes, scales, zeros = (_array(node, i) for i in (1, 2, 3))
        assert codes is not None and scales is not None and node.inputs[1] is not None
        bits, columns = node.attributes["bits"].as_int(), node.attributes["K"].as_int()
        weight = _dequantised(codes.reshape(len(codes), -1), scales, zeros, bits, columns)
        factor = factor_of_inputs(node)
        found[str(node.inputs[1].name).removesuffix(".codes")] = weight if factor is None else weight * factor
    return found


def _one(node: ir.Node, bank: list[np.ndarray | None], expert: int) -> np.ndarray:
    """One expert's weight [N, K]."""
    bits = node.attributes["expert_weight_bits"].as_int()
    codes, scales, zeros, whole = bank
    assert codes is not None and scales is not None
    columns = codes.shape[2] * 8 // bits
    if whole is not None:
        values = E2M1[_unpacked(codes[expert], bits, columns)].reshape(*scales[expert].shape, -1)
        return (values * (scales[expert] * whole[expert])[..., None]).reshape(-1, columns)
    if "block_size" in node.attributes:
        return _dequantised(codes[expert], scales[expert], None if zeros is None else zeros[expert], bits, columns)
    rows = codes.shape[1]
    zero = None if zeros is None else _unpacked(zeros[expert], bits, rows)[:, None]
    return _dequantised(codes[expert], scales[expert][:, None], zero, bits, columns, unpacked=True)


def _dequantised(
    codes: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, bits: int, columns: int, unpacked: bool = False
) -> np.ndarray:
    """codes [N, bytes], scales [N, G], zeros [N, bytes] (or [N, G] when `unpacked`) -> [N, K]."""
    blocks = scales.shape[1]
    if zeros is None:
        zero = np.full(scales.shape, 1 << (bits - 1), np.uint8)
    else:
        zero = zeros if unpacked else _unpacked(zeros, bits, blocks)
    per = columns // blocks
    code = _unpacked(codes, bits, columns).reshape(len(codes), blocks, per).astype(np.float32)
    return ((code - zero[..., None].astype(np.float32)) * scales[..., None]).reshape(len(codes), columns)


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """[..., bytes] -> [..., count]: the first number in the lowest bits."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    numbers = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return numbers.reshape(*packed.shape[:-1], -1)[..., :count]


def _array(node: ir.Node, i: int) -> np.ndarray | None:
    value = node.inputs[i] if i < len(node.inputs) else None
    if value is None or value.const_value is None:
        return None
    array = numbers(value.const_value)
    return array if array.dtype == np.uint8 else array.astype(np.float32)
