"""The layers that a translation to ONNX left out, put into the graph: copies of the nodes between two seams."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxscript
from onnx.defs import OpSchema, SchemaError, register_schema

from mocomp.ir.rewrite import MOCOMP
from mocomp.lowering.branches import DOMAIN
from mocomp.lowering.shortened import Cut

SEAM = "seam"
TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(int64)", "tensor(int32)", "tensor(bool)"]


@cache
def _seams() -> onnxscript.values.Opset:
    schema = OpSchema(
        SEAM,
        DOMAIN,
        1,
        inputs=[OpSchema.FormalParameter("x", "T")],
        outputs=[OpSchema.FormalParameter("y", "T")],
        type_constraints=[("T", TYPES, "")],
        attributes=[OpSchema.Attribute("label", OpSchema.AttrType.STRING, required=True)],
    )
    with suppress(SchemaError):  # declared by somebody else in this process
        register_schema(schema)
    return onnxscript.values.Opset(DOMAIN, 1)


def _seam(x: Any, label: str) -> Any:
    return _seams().seam(x, label=label)


TRANSLATIONS = {MOCOMP.seam.default: _seam}


def stamp(model: ir.Model, cuts: list[Cut]) -> bool:
    """Put in the layers that were cut out and take out the seams. False, and a graph that is of no use, where the nodes of the
    two periods that are in the graph are not the same but for names."""
    if not all(_Stamp(model.graph, cut).apply() for cut in cuts):
        return False
    for node in list(model.graph):
        if node.op_type == SEAM and node.domain == DOMAIN:
            assert node.inputs[0] is not None
            ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])
            model.graph.remove(node, safe=True)
    if not any(node.domain == DOMAIN for node in model.graph.all_nodes()):
        model.graph.opset_imports.pop(DOMAIN, None)
    return True


class _Stamp:
    def __init__(self, graph: ir.Graph, cut: Cut) -> None:
        self.graph, self.cut = graph, cut
        self.inputs = {str(value.name): value for value in graph.inputs}
        self.outputs = {str(value.name): value for value in graph.outputs}
        self.seams = {
            node.attributes["label"].as_string(): node for node in graph if node.op_type == SEAM and node.domain == DOMAIN
        }
        self.second, self.last = self._segment("in", cut.leaves[-1].keys()), self._segment("out", cut.leaves[-1].values())

    def apply(self) -> bool:
        if not self.second or len(self.second) != len(self.last):
            return False
        twins = {
            id(a): b for x, y in zip(self.second, self.last, strict=True) for a, b in zip(x.outputs, y.outputs, strict=False)
        }
        if not all(self._same(x, y, twins) for x, y in zip(self.second, self.last, strict=True)):
            return False
        place = {node: i for i, node in enumerate(self.graph)}
        taking = [node for node in self.last if any(self._handed(value, "out") for value in node.inputs)]
        if min(map(place.__getitem__, taking)) < place[self.second[-1]]:
            return False
        copies: dict[int, ir.Value] = {}
        made: list[ir.Node] = []
        for leaves, results, number in zip(self.cut.leaves, self.cut.results, self.cut.numbers, strict=False):
            copies = self._copy(made, copies, leaves, results, number)
        self.graph.insert_after(self.second[-1], made)
        for node in self.last:
            for i, value in enumerate(node.inputs):
                behind = self._handed(value, "out")
                if behind is not None:
                    node.replace_input_with(i, copies[id(behind)])
        self.graph.inputs[:], self.graph.outputs[:] = self.inputs.values(), self.outputs.values()
        return True

    def _labelled(self, kind: str) -> dict[str, ir.Node]:
        start = f"{self.cut.label} {kind} "
        return {label.removeprefix(start): node for label, node in self.seams.items() if label.startswith(start)}

    def _handed(self, value: ir.Value | None, kind: str) -> ir.Value | None:
        """What the seam hands on that `value` comes out of, if it is one of that kind; for one that leads into the second
        period, what the last is handed in its place."""
        node = value.producer() if value is not None else None
        for key, seam in self._labelled(kind).items():
            if seam is node:
                return self._labelled("out")[key].inputs[0]
        return None

    def _segment(self, kind: str, leaves: Any) -> list[ir.Node]:
        """The nodes of a period: those that depend on a weight of its own or on what it is handed, and those before them that
        read its own inputs for nobody else."""
        names, inputs = set(leaves), {id(self.inputs[name]) for name in leaves if name in self.inputs}
        reached = {id(seam.outputs[0]) for seam in self._labelled(kind).values()}
        reached |= {id(value) for name, value in self.graph.initializers.items() if name in names}
        inside, near = [], []
        for node in self.graph:
            if node.op_type == SEAM and node.domain == DOMAIN:
                continue
            read = {id(value) for value in node.inputs}
            if read & reached:
                inside.append(node)
                reached |= {id(value) for value in node.outputs}
            elif read & inputs:
                near.append(node)
                inputs |= {id(value) for value in node.outputs}
        chosen = set(inside)
        for node in reversed(near):
            users = {user for value in node.outputs for user in value.consumers()}
            if users and users <= chosen:
                chosen.add(node)
        return [node for node in self.graph if node in chosen]

    def _same(self, x: ir.Node, y: ir.Node, twins: dict[int, ir.Value]) -> bool:
        if x.op_identifier() != y.op_identifier() or len(x.inputs) != len(y.inputs) or len(x.outputs) != len(y.outputs):
            return False
        if not _same_attributes(x, y):
            return False
        return all(self._same_value(a, b, twins) for a, b in zip(x.inputs, y.inputs, strict=True))

    def _same_value(self, a: ir.Value | None, b: ir.Value | None, twins: dict[int, ir.Value]) -> bool:
        if a is None or b is None or a is b:
            return a is b
        if id(a) in twins:
            return twins[id(a)] is b
        if str(a.name) in self.cut.leaves[-1] and a.producer() is None:
            return self.cut.leaves[-1][str(a.name)] == b.name
        handed = self._handed(a, "in")
        return handed is self._handed(b, "out") if handed is not None else _same_constant(a, b)

    def _copy(
        self, made: list[ir.Node], previous: dict[int, ir.Value], leaves: dict[str, str], results: dict[str, str], number: int
    ) -> dict[int, ir.Value]:
        """Copies of the second period's nodes for one that was left out; {id of a value there: the copy's}."""
        copies: dict[int, ir.Value] = {}

        def here(value: ir.Value | None) -> ir.Value | None:
            if value is None or id(value) in copies:
                return None if value is None else copies[id(value)]
            if value.producer() is None and str(value.name) in leaves:
                return self._leaf(value, leaves[str(value.name)])
            behind = self._handed(value, "in")
            return value if behind is None else previous.get(id(behind), behind)

        for node in self.second:
            outputs = [ir.Value(name=f"{v.name}.{number}", shape=v.shape, type=v.type) for v in node.outputs]
            made.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    [here(value) for value in node.inputs],
                    list(node.attributes.values()),
                    overload=node.overload,
                    outputs=outputs,
                    version=node.version,
                    name=f"{node.name}.{number}",
                )
            )
            copies |= {id(value): copy for value, copy in zip(node.outputs, outputs, strict=True)}
        for name, there in results.items():
            copy = copies[id(self.outputs[name])]
            copy.name = there
            self.outputs[there] = copy
        return copies

    def _leaf(self, like: ir.Value, name: str) -> ir.Value:
        if str(like.name) in self.inputs:
            return self.inputs.setdefault(name, ir.Value(name=name, shape=like.shape, type=like.type))
        if name not in self.graph.initializers:
            self.graph.initializers[name] = ir.Value(name=name, shape=like.shape, type=like.type)
        return self.graph.initializers[name]


def _same_attributes(x: ir.Node, y: ir.Node) -> bool:
    if x.attributes.keys() != y.attributes.keys():
        return False
    for name, a in x.attributes.items():
        b = y.attributes[name]
        if a.type != b.type or a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            return False
        if a.type == ir.AttributeType.TENSOR:
            if not np.array_equal(a.as_tensor().numpy(), b.as_tensor().numpy()):
                return False
        elif a.value != b.value:
            return False
    return True


def _same_constant(a: ir.Value, b: ir.Value) -> bool:
    x, y = (ir.convenience.get_const_tensor(value) for value in (a, b))
    if x is None or y is None or x.dtype != y.dtype:
        return False
    return x.shape == y.shape and np.array_equal(x.numpy(), y.numpy(), equal_nan=x.dtype.is_floating_point())
