"""The experts of one mixture that a rank holds, as a graph of their own: it runs each choice of a token as a row.

A row has one expert, whose weight is multiplied after it: no rank computes for a token what another rank was chosen for, and
no weight has to pass through the softmax of an operator. Dimension letters: T tokens sent, P choices of them, E experts held,
H hidden.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mocomp.lowering import portable, tuned
from mocomp.lowering.placeholders import DOMAIN, EXPERTS
from mocomp.lowering.ranks_graph import Seam

INTEGER, FLOAT = ir.TensorType(ir.DataType.INT64), ir.TensorType(ir.DataType.FLOAT)
INPUTS = ("x", "token", "expert", "weight")


def of_any(model: ir.Model, seam: Seam, count: int, body: str) -> ir.Model:
    """`count` experts of a mixture, whichever runs it."""
    called = portable.is_call(model, seam.call)
    return of_call(model, seam, count, body) if called else of_operator(model, seam, count)


def of_operator(model: ir.Model, seam: Seam, count: int) -> ir.Model:
    """`count` experts of a MoE or QMoE, each row by the logits of one expert."""
    fused = tuned.fused_node(model, seam.call)
    graph = _Rows(model, fused.inputs[2:], seam.experts, count)
    sides = graph.constant(np.array([0, 1], np.float32))
    logits = graph.op("OneHot", [graph.expert, graph.constant(np.array([count])), sides], {"axis": -1})
    attributes = {name: attribute.value for name, attribute in fused.attributes.items()} | {"k": 1}
    y = graph.op(fused.op_type, [graph.rows, logits, *graph.bank], attributes, domain=fused.domain)
    return graph.model(graph.op("Mul", [y, graph.column(graph.weight)]))


def of_call(model: ir.Model, seam: Seam, count: int, body: str) -> ir.Model:
    """`count` experts of a function, which is made anew for as many and one choice; `body` is one of `deployment.BODIES`."""
    layer = portable.layer_of(model, seam.call)
    graph = _Rows(model, seam.call.inputs[3:], seam.experts, count)
    ids, weights = graph.column(graph.expert), graph.column(graph.weight)
    ids.type, ids.shape = INTEGER, ir.Shape(["choices", 1])
    y = graph.op(EXPERTS, [graph.rows, ids, weights, *graph.bank], {"spec": layer.expert}, domain=DOMAIN)
    made = graph.model(y)
    portable.to_functions(made, body, model.opset_imports[""])
    return made


class _Rows:
    """A graph while it is made: x [T, H] and the choices [P] come in, `rows` [P, H] are the tokens of the choices, `bank` the
    weights of the experts held, as `seam.call` has those of all."""

    def __init__(self, model: ir.Model, bank: tuple[ir.Value | None, ...], experts: int, count: int):
        self.source, self.experts, self.count = model, experts, count
        self.tape = ir.tape.Tape()
        self.x = ir.Value(name="x", type=FLOAT, shape=ir.Shape(["tokens", None]))
        kinds = {"token": INTEGER, "expert": INTEGER, "weight": FLOAT}
        choices = [ir.Value(name=name, type=kind, shape=ir.Shape(["choices"])) for name, kind in kinds.items()]
        self.token, self.expert, self.weight = choices
        self.weights: dict[ir.Value, ir.Value] = {}
        self.made: dict[ir.Node, list[ir.Value]] = {}
        self.bank = [None if value is None else self._held(value) for value in bank]
        self.rows = self.op("Gather", [self.x, self.token], {"axis": 0})

    def op(self, kind: str, inputs: list[ir.Value | None], attributes: dict | None = None, domain: str = "") -> ir.Value:
        return self.tape.op(kind, inputs, attributes or {}, domain=domain)

    def constant(self, value: np.ndarray) -> ir.Value:
        return self.op("Constant", [], {"value": ir.tensor(value)})

    def column(self, value: ir.Value) -> ir.Value:
        """[P] -> [P, 1]."""
        return self.op("Unsqueeze", [value, self.constant(np.array([1]))])

    def model(self, rows: ir.Value) -> ir.Model:
        """The graph that adds up the rows [P, H] of each token. ScatterND would be shorter, and ONNX Runtime adds there to one
        row from several threads at once (onnxruntime#18048, #23396)."""
        nothing = self.op("ConstantOfShape", [self.op("Shape", [self.x])], {"value": ir.tensor(np.zeros(1, np.float32))})
        places = self.op("Expand", [self.column(self.token), self.op("Shape", [rows])])
        y = self.op("ScatterElements", [nothing, places, rows], {"axis": 0, "reduction": "add"})
        y.name, y.type, y.shape = "y", FLOAT, ir.Shape(["tokens", None])
        for i, value in enumerate(value for node in self.tape.nodes for value in node.outputs if value.name is None):
            value.name = f"value_{i}"
        graph = ir.Graph(
            [self.x, self.token, self.expert, self.weight],
            [y],
            nodes=list(self.tape.nodes),
            initializers=list(self.weights.values()),
            opset_imports=dict(self.source.opset_imports),
            name="experts",
        )
        return ir.Model(graph, ir_version=self.source.ir_version)

    def _held(self, value: ir.Value) -> ir.Value:
        """A weight of the experts held, with what it is unpacked by."""
        node = value.producer()
        if node is None:
            return self._weight(value)
        if node not in self.made:
            inputs = [None if given is None else self._held(given) for given in node.inputs]
            attributes = {name: attribute.value for name, attribute in node.attributes.items()}
            self.made[node] = [self.op(node.op_type, inputs, attributes, domain=node.domain)]
        [made] = self.made[node]
        made.type, made.shape = value.type, self._fewer(value.shape)
        return made

    def _weight(self, value: ir.Value) -> ir.Value:
        if value not in self.weights:
            stored = isinstance(value.const_value, ir.ExternalTensor)
            own = ir.Value(name=value.name, type=value.type, shape=self._fewer(value.shape) if stored else value.shape)
            own.const_value = None if stored else value.const_value
            self.weights[value] = own
        return self.weights[value]

    def _fewer(self, shape: ir.Shape | None) -> ir.Shape:
        assert shape is not None and shape[0] == self.experts
        return ir.Shape([self.count, *shape[1:]])
