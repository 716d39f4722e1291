"""A fused mixture of a lowered model: the node, what it is told, and the node alone, ready to run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mocomp.lowering import packed_weights
from mocomp.lowering.onnx_session import runs, session

ROUNDING = ("QMoE", "MatMulNBits")
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class FusedMixture:
    """The node that gives `y`, a MoE or QMoE or what runs in its place, alone on the weights of the artifact in `directory`.

    `prepare` changes the model of that one node before it is opened on `device`; `tf32` is of `session`.
    """

    def __init__(
        self,
        model: ir.Model,
        y: str,
        directory: Path,
        device: str,
        prepare: Callable[[ir.Model], None] | None = None,
        tf32: bool = False,
    ):
        node = node_of(model, y)
        logits, bank = node.inputs[1], [value for value in node.inputs[2:] if value is not None]
        assert logits is not None and bank[0].shape is not None
        self.experts = int(bank[0].shape[0])
        self.factor = packed_weights.factor_of_inputs(node)
        single = _alone(model, node, bank)
        if prepare is not None:
            prepare(single)
        self._run = runs(session(ir.to_proto(single).SerializeToString(), directory, device, tf32=tf32), device)

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """y [T, H] for x [T, H], ids [T, K] and weights [T, K]."""
        x = inputs["x"] if self.factor is None else inputs["x"] * self.factor
        logits = np.full((len(x), self.experts), -np.inf, np.float32)
        with np.errstate(divide="ignore"):
            np.put_along_axis(logits, inputs["ids"], np.log(inputs["weights"]), axis=-1)
        # the operator divides the weights by their sum
        y = self._run({"x": x, "logits": logits})["y"]
        return {"y": y * inputs["weights"].sum(-1, keepdims=True)}


def node_of(model: ir.Model, y: str) -> ir.Node:
    """The node whose first output has that name."""
    return next(n for n in model.graph if n.outputs[0].name == y)


def set_accuracy(model: ir.Model, level: int) -> None:
    """The `accuracy_level` of every operator that has one: 0 is float activations, 4 int8 ones."""
    for node in (node for graph in (model.graph, *model.functions.values()) for node in graph.all_nodes()):
        if node.op_type in ROUNDING:
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)


def _alone(model: ir.Model, node: ir.Node, bank: list[ir.Value]) -> ir.Model:
    """A model (x, logits) -> y of one node; its weights leave the graph that they were in."""
    given = [value for value in (node.inputs[0], *bank) if value is not None]  # a bank may hold floats of another type alone
    floats = next((value.dtype for value in given if value.dtype in FLOATS), ir.DataType.FLOAT)
    x, logits = (ir.Value(name=name, type=ir.TensorType(floats)) for name in ("x", "logits"))
    alone = ir.Node(node.domain, node.op_type, [x, logits, *node.inputs[2:]], list(node.attributes.values()))
    alone.outputs[0].name, alone.outputs[0].type = "y", x.type
    for value in bank:
        model.graph.initializers.pop(value.name)  # type: ignore[arg-type]
    opsets = model.opset_imports
    graph = ir.Graph([x, logits], alone.outputs, nodes=[alone], initializers=bank, opset_imports=opsets)
    return ir.Model(graph, ir_version=model.ir_version, functions=list(model.functions.values()))
