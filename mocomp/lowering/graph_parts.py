"""A graph cut into parts, each to be run in a session of its own, so that one part's weights are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir


@dataclass
class Part:
    """Nodes that are run together: the values they want of inputs and of parts before, those that are wanted of them, and those
    that nobody wants after them."""

    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)


def cut(model: ir.Model, wanted: Sequence[str], limit: int) -> list[Part]:
    """Parts of a graph, in order, that hold at most `limit` bytes of weights each, but at least one node; `wanted` names the
    values that are asked for, inner ones or outputs.

    What is made of weights alone is no part: it goes with each node that reads it.
    """
    asked, fixed = set(wanted), _fixed(model)
    groups = list(_groups(model, fixed, limit))
    made_in = {value: i for i, nodes in enumerate(groups) for node in nodes for value in node.outputs}
    read_in: dict[ir.Value, list[int]] = {}
    for i, nodes in enumerate(groups):
        for value in dict.fromkeys(value for node in nodes for value in inputs_of(node) if value not in fixed):
            read_in.setdefault(value, []).append(i)
    parts = [Part() for _ in groups]
    for value, readers in read_in.items():
        later = [i for i in readers if i != made_in.get(value)]
        for i in later:
            parts[i].inputs.append(str(value.name))
        if later and value.name not in asked:
            parts[later[-1]].last.append(str(value.name))
    for value, i in made_in.items():
        if value.name in asked or any(reader != i for reader in read_in.get(value, ())):
            parts[i].outputs.append(str(value.name))
    return [part for part in parts if part.outputs]


def part_of(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """The nodes from some values to others, with their weights, as a model. Raises ValueError where they need other values."""
    graph = ir.convenience.extract(model.graph, list(inputs), list(outputs))
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def inputs_of(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and the branches that it may have inside."""
    yield from (value for value in node.inputs if value is not None)
    graphs = [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]
    for inner in (inner for graph in graphs for inner in graph):
        yield from inputs_of(inner)


def _fixed(model: ir.Model) -> dict[ir.Value, dict[ir.Value, int]]:
    """Each value that depends on no input, with the weights that it is made of and their bytes, in float32 where they are
    floats."""
    fixed = {value: {value: _nbytes(value)} for value in model.graph.initializers.values()}
    for node in model.graph:
        inputs = list(inputs_of(node))
        if all(value in fixed for value in inputs):
            weights = {weight: size for value in inputs for weight, size in fixed[value].items()}
            fixed |= dict.fromkeys(node.outputs, weights)
    return fixed


def _groups(model: ir.Model, fixed: dict[ir.Value, dict[ir.Value, int]], limit: int) -> Iterator[list[ir.Node]]:
    nodes: list[ir.Node] = []
    held: dict[ir.Value, int] = {}
    for node in model.graph:
        if all(value in fixed for value in node.outputs):
            continue
        own = {weight: size for value in inputs_of(node) for weight, size in fixed.get(value, {}).items()}
        if nodes and sum((held | own).values()) > limit and not own.keys() <= held.keys():
            yield nodes
            nodes, held = [], {}
        nodes.append(node)
        held |= own
    yield nodes


def _nbytes(value: ir.Value) -> int:
    if value.shape is None or value.dtype is None:
        return 0
    count = 1
    for size in value.shape:
        count *= int(size)
    return int(count * max(value.dtype.itemsize, 4 if value.dtype.is_floating_point() else 0))
