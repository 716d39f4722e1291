"""The ops of mocomp in standard ONNX operators: packed weights are unpacked by DequantizeLinear when the model runs.

Dimension letters: E experts, N rows, K columns, G blocks of columns.
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset23 as op

from mocomp.errors import Usage
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP
from mocomp.lowering import onnxruntime_ops, placeholders, portable, unfused
from mocomp.lowering.exported_function import count_axes_from_the_front
from mocomp.lowering.older_opsets import DIRECT, FIRST, is_newer, to_older
from mocomp.lowering.onnx_graph import to_onnx
from mocomp.quant import formats
from mocomp.quant.formats import Format

LEVELS = {"nvfp4": (23, 11), "int2": (25, 13)}
"""(opset, IR version) from which on ONNX has the types of a format; what all others need is LEAST."""
LEAST = (FIRST, 10)
TRACED = DIRECT
"""The opset in which a graph is made: the first that has attention, norms and rotary embeddings."""


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


def level(program: Program, asked: int = 0) -> tuple[int, int]:
    """(opset, IR version) for the weights of a program, the lowest that suffices where none is `asked` for. Raises Usage for
    one that does not have their types."""
    types = max([LEAST, *(LEVELS.get(form.name, LEAST) for form, _ in unfused.packed(program).values())])
    if asked and asked < types[0]:
        raise Usage(f"--opset {asked} has not the types of these weights", fix=f"They need opset {types[0]}: leave it out.")
    return asked or types[0], types[1]


def to_standard(program: Program, opset: int = 0, mixture: str = "auto") -> ir.Model:
    """The program in standard operators, at the lowest opset that suffices, or that one; weights are initializers without data.

    `mixture` says how mixtures are computed, one of `deployment.BODIES`; how they are called says `lowering/portable.py`.
    """
    least, ir_version = level(program, opset)
    model = to_onnx(program, TRANSLATIONS, TRACED, ir_version)
    if not opset:  # torch's exporter gives operators of that opset for calls that are not ours, too
        least = max(least, DIRECT) if any(map(is_newer, model.graph.all_nodes())) else least
    opset = least
    portable.to_functions(model, mixture, opset)
    if opset < DIRECT:
        to_older(model, opset)
    model.opset_imports[""] = opset  # all else that the graph uses means the same in any of them
    count_axes_from_the_front(model.graph)
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
TRANSLATIONS = (
    {call: onnxruntime_ops.TRANSLATIONS[call] for call in SHARED}
    | placeholders.TRANSLATIONS
    | {MOCOMP.dequantize.default: _dequantize}
)
