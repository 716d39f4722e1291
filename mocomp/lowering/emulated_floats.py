"""QMoE of floats of 4 bits, which the CUDA provider alone has, as MoE of weights that are unpacked when the model is loaded.

Dimension letters: E experts, N rows, K columns, G blocks of columns.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from mocomp.quant.e2m1 import VALUES

BANKS = ((2, 3, 15), (5, 6, 16))
"""Where a QMoE has the codes [E, N, K/2], the scales [E, N, G] and the scale of scales [E] of each of its weights."""
OWN = ("expert_weight_bits", "block_size", "weights_prepacked", "quant_type", "accuracy_level")
"""Attributes that MoE has not."""
Op = Callable[..., ir.Value]


def unpack(graph: ir.Graph, node: ir.Node) -> None:
    """Replace a QMoE whose `quant_type` is nvfp4 by a MoE, and put before it what unpacks its weights."""

    def op(name: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        made = ir.Node("", name, list(inputs), [ir.AttrInt64(key, value) for key, value in attributes.items()])
        graph.insert_before(node, made)
        return made.outputs[0]

    def constant(array: np.ndarray) -> ir.Value:
        made = ir.Node("", "Constant", [], [ir.AttrTensor("value", ir.tensor(array))])
        graph.insert_before(node, made)
        return made.outputs[0]

    w_in, w_out = (_weight(op, constant, *(_given(node, i) for i in bank)) for bank in BANKS)
    said = [attribute for name, attribute in node.attributes.items() if name not in OWN]
    inputs = [node.inputs[0], node.inputs[1], w_in, node.inputs[4], w_out, node.inputs[7]]
    moe = ir.Node(node.domain, "MoE", inputs, said)
    y, old = moe.outputs[0], node.outputs[0]
    y.name, y.type, y.shape = old.name, old.type, old.shape
    graph.insert_before(node, moe)
    old.name = None
    old.replace_all_uses_with(y, replace_graph_outputs=True)
    graph.remove(node, safe=True)


def _weight(op: Op, constant: Callable[[np.ndarray], ir.Value], codes: ir.Value, scales: ir.Value, whole: ir.Value) -> ir.Value:
    """w [E, N, K] float32."""
    assert codes.shape is not None and scales.shape is not None
    sizes, blocks = [int(size) for size in codes.shape], int(scales.shape[2])
    last = constant(np.array([-1], np.int64))
    low = op("BitwiseAnd", codes, constant(np.array(15, np.uint8)))
    high = op("Div", codes, constant(np.array(16, np.uint8)))
    pairs = op("Concat", op("Unsqueeze", low, last), op("Unsqueeze", high, last), axis=-1)
    both = np.array([*VALUES, *(-value for value in VALUES)], np.float32)
    values = op("Gather", constant(both), op("Cast", pairs, to=int(ir.DataType.INT32)), axis=0)
    cut = op("Reshape", values, constant(np.array([sizes[0], sizes[1], blocks, -1])))
    floats = op("Cast", scales, to=int(ir.DataType.FLOAT))
    each = op("Mul", op("Unsqueeze", floats, last), op("Reshape", whole, constant(np.array([-1, 1, 1, 1]))))
    return op("Reshape", op("Mul", cut, each), constant(np.array([sizes[0], sizes[1], -1])))


def _given(node: ir.Node, i: int) -> ir.Value:
    value = node.inputs[i]
    assert value is not None
    return value
