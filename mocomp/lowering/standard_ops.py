"""The ops of mocomp in standard ONNX operators: packed weights are unpacked by DequantizeLinear when the model runs.

Dimension letters: E experts, N rows, K columns, G blocks of columns.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset23 as op

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP
from mocomp.lowering import onnxruntime_ops, unfused
from mocomp.lowering.onnx_graph import to_onnx
from mocomp.quant import formats
from mocomp.quant.formats import Format

LEVELS = {"nvfp4": (23, 11), "int2": (25, 13)}
"""(opset, IR version) from which on ONNX has the types of a format; what all others need is BASE."""
BASE = (23, 10)


def axis_and_block(form: Format, shape: tuple[int, ...]) -> tuple[int, int]:
    """(axis, block_size) of the DequantizeLinear of a weight [N, K] or [E, N, K]; block_size 0 is a scale for each index of
    the axis. A scale per row of a bank has two dimensions, which is said as blocks of whole rows."""
    rows, columns = form.tile
    last = len(shape) - 1
    if (rows, columns) == (0, 0):
        return 0, 0
    if not columns and last == 1:
        return 0, 0
    return last, columns or shape[-1]


def level(program: Program) -> tuple[int, int]:
    """(opset, IR version) that a program needs."""
    return max([BASE, *(LEVELS.get(form.name, BASE) for form, _ in unfused.packed(program).values())])


def to_standard(program: Program) -> ir.Model:
    """The program in standard operators, at the lowest opset that has its types; weights are initializers without data."""
    opset, ir_version = level(program)
    model = to_onnx(program, TRANSLATIONS, BASE[0], ir_version)
    model.opset_imports[""] = opset  # what the graph uses of BASE means the same in those after it
    for node in model.graph.all_nodes():
        if node.op_type == "GatherElements" and node.attributes["axis"].as_int() < 0:
            # the reference evaluator of onnx 1.23 takes an axis that is counted from the end for a wrong shape
            shape = node.outputs[0].shape
            assert shape is not None
            node.attributes["axis"] = ir.AttrInt64("axis", node.attributes["axis"].as_int() + shape.rank())
    return model


def _dequantize(parts: Any, spec: str, columns: int) -> Any:
    form = formats.parse(spec)
    codes, scales, *rest = parts
    shape = (*(int(size) for size in codes.shape[:-1]), columns)
    axis, block = axis_and_block(form, shape)
    blocks = {"block_size": block} if block else {}
    if form.name == "nvfp4":  # its scales are quantised too, by one float for each expert
        scales, rest = op.DequantizeLinear(scales, rest[0], axis=0, output_dtype=int(ir.DataType.FLOAT)), []
    zeros = rest[0] if rest else None
    return op.DequantizeLinear(codes, scales, zeros, axis=axis, **blocks, output_dtype=int(ir.DataType.FLOAT))


SHARED = (
    torch.ops.aten.index_select.default,
    MOCOMP.attention.default,
    MOCOMP.rms_norm.default,
    MOCOMP.rotary.default,
)
"""Ops that ONNX Runtime, too, is given as standard operators."""
TRANSLATIONS = {call: onnxruntime_ops.TRANSLATIONS[call] for call in SHARED} | {MOCOMP.dequantize.default: _dequantize}
