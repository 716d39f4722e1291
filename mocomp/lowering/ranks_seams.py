"""Where the graphs of both ONNX targets are cut for ranks: at fused operators, and at calls of functions.

Dimension letters: T tokens, E experts, K chosen per token, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from mocomp.lowering import portable, tuned
from mocomp.lowering.fused_mixture import node_of
from mocomp.lowering.ranks_graph import Seam

LOWEST = np.finfo(np.float32).min


def at_operators(model: ir.Model, mixtures: Iterable[tuple[str, str]]) -> list[Seam]:
    """A seam at each MoE or QMoE, or what runs in its place, by (layer, name of y). They choose themselves, by logits: what
    they would choose, and how it weighs, is put into `model` before them."""
    seams = []
    for layer, y in mixtures:
        node = node_of(model, y)
        fused = tuned.fused_node(model, node)
        x, logits, bank = fused.inputs[0], fused.inputs[1], fused.inputs[2]
        assert x is not None and logits is not None and bank is not None and bank.shape is not None
        ids, weights = _choice(model, node, logits, fused.attributes["k"].as_int(), layer)
        seams.append(Seam(layer, node, x, ids, weights, node.outputs[0], int(bank.shape[0])))
    return seams


def at_calls(model: ir.Model, mixtures: Iterable[tuple[str, str]]) -> list[Seam]:
    """A seam at each call of a function that runs a mixture, by (layer, name of y)."""
    seams = []
    for layer, y in mixtures:
        call = portable.call_of(model, y)
        x, ids, weights = call.inputs[:3]
        assert x is not None and ids is not None and weights is not None
        seams.append(Seam(layer, call, x, ids, weights, call.outputs[0], portable.layer_of(model, call).experts))
    return seams


def _choice(model: ir.Model, node: ir.Node, logits: ir.Value, k: int, layer: str) -> tuple[ir.Value, ir.Value]:
    """ids [T, K] and weights [T, K] as the operator takes them from logits [T, E]: the K largest by their softmax, where
    -infinity has no weight even if there is nothing else (docs/decisions/0003)."""
    tape = ir.tape.Tape()

    def constant(value: np.ndarray) -> ir.Value:
        return tape.op("Constant", [], {"value": ir.tensor(value)})

    top, ids = tape.op_multi_out("TopK", [logits, constant(np.array([k]))], {"axis": -1}, num_outputs=2)
    some = tape.op("Softmax", [tape.op("Max", [top, constant(np.array(LOWEST))])], {"axis": -1})
    never = tape.op("Equal", [top, constant(np.array(-np.inf, np.float32))])
    weights = tape.op("Where", [never, constant(np.array(0, np.float32)), some])
    ids.name, ids.type = f"{layer}/ids", ir.TensorType(ir.DataType.INT64)
    weights.name, weights.type = f"{layer}/weights", ir.TensorType(ir.DataType.FLOAT)
    for i, value in enumerate(value for made in tape.nodes for value in made.outputs if value.name is None):
        value.name = f"{layer}/choice_{i}"
    model.graph.insert_before(node, list(tape.nodes))
    return ids, weights
