"""One mixture of an artifact alone: the call with its functions, on the weights as they lie there.

Dimension letters: T tokens, E experts, K chosen per token, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mocomp.lowering import portable
from mocomp.lowering.onnx_session import session
from mocomp.lowering.packed_weights import factor_of_inputs

TYPES = {"x": ir.DataType.FLOAT, "ids": ir.DataType.INT64, "weights": ir.DataType.FLOAT}


class CallSession:
    """x [T, H], ids [T, K] int64 and weights [T, K] -> y [T, H]. What x is multiplied by before the call, for the sake of
    quantised weights, it is multiplied by here. `experts` is E."""

    def __init__(self, model: ir.Model, call: ir.Node, directory: Path):
        self.experts = portable.layer_of(model, call).experts
        self._session = session(ir.to_proto(alone(model, call)).SerializeToString(), directory)
        self._factor = factor_of_inputs(call)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """y by its name."""
        x = inputs["x"] if self._factor is None else inputs["x"] * self._factor
        return {"y": self._session.run(None, {"x": x, "ids": inputs["ids"], "weights": inputs["weights"]})[0]}


def alone(model: ir.Model, call: ir.Node) -> ir.Model:
    """A call and what its weights are unpacked by, as a model; `model` is not to be used after that."""
    inputs = [ir.Value(name=name, type=ir.TensorType(kind)) for name, kind in TYPES.items()]
    own = ir.Node(call.domain, call.op_type, [*inputs, *call.inputs[len(inputs) :]])
    y = own.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.FLOAT)
    before, weights = _unpacking(call.inputs[len(inputs) :])
    for node in before:
        model.graph.remove(node)
    for value in weights:
        model.graph.initializers.pop(str(value.name))
    graph = ir.Graph(inputs, [y], nodes=[*before, own], initializers=weights, opset_imports=model.opset_imports)
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))


def _unpacking(values: list[ir.Value | None] | tuple[ir.Value | None, ...]) -> tuple[list[ir.Node], list[ir.Value]]:
    """(the nodes that these are computed by, in order; the initializers that those read)."""
    nodes: list[ir.Node] = []
    weights: dict[ir.Value, None] = {}
    for value in values:
        if value is None:
            continue
        node = value.producer()
        if node is None:
            weights[value] = None
        elif node not in nodes:
            first, read = _unpacking(node.inputs)
            nodes += [one for one in first if one not in nodes] + [node]
            weights |= dict.fromkeys(read)
    return nodes, list(weights)
