"""What TensorRT asks of If, Loop and Scan: sizes that do not depend on how often or where they go."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from mocomp.capability import Gap
from mocomp.capability.graphs import at, input_of, integer, is_constant, rank_of, sizes_of
from mocomp.capability.tensorrt_rules import Asked, rule

STATIC = "--mixture dense or gathered needs no loop"


@rule("If")
def branches_are_alike(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """Outputs of one rank, by different names."""
    branches = [node.attributes[name].as_graph().outputs for name in ("then_branch", "else_branch")]
    for one, other in zip(*branches, strict=False):
        ranks = {rank_of(one), rank_of(other)} - {None}
        if len(ranks) > 1:
            yield at(node, f"{one.name} and {other.name} have {rank_of(one)} and {rank_of(other)} dimensions", STATIC)
        if one.name == other.name:
            yield at(node, f"both branches name an output {one.name}", "rename one")


@rule("Loop")
def scan_outputs_have_a_length(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """As many trips as a constant says, where each leaves an entry."""
    body = node.attributes["body"].as_graph()
    carried = len(node.inputs) - 2
    if len(body.outputs) - 1 == carried:
        return
    trips = input_of(node, 0)
    if trips is None or not is_constant(trips):
        yield at(node, "the length of its scan outputs is not a constant", STATIC)
    elif not _goes_on(body):
        yield at(node, "it may end early, and so the length of its scan outputs is not a constant", STATIC)


@rule("Loop")
def carried_shapes_stay(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """What goes from one trip to the next has the shape that it began with."""
    body = node.attributes["body"].as_graph()
    carried = len(node.inputs) - 2
    for first, came, goes in zip(node.inputs[2:], body.inputs[2:], body.outputs[1 : 1 + carried], strict=False):
        shapes = {sizes_of(value) for value in (first, came, goes)} - {None}
        ranks = {rank_of(value) for value in (first, came, goes)} - {None}
        if len(shapes) > 1 or len(ranks) > 1:
            yield at(node, f"{goes.name} does not keep its shape from trip to trip", STATIC)


@rule("Scan")
def scanned_length(node: ir.Node, asked: Asked) -> Iterator[Gap]:
    """The axis that is scanned has a size that is known."""
    scanned = node.inputs[len(node.inputs) - integer(node, "num_scan_inputs") :]
    axes = node.attributes["scan_input_axes"].as_ints() if "scan_input_axes" in node.attributes else [0] * len(scanned)
    for value, axis in zip(scanned, axes, strict=False):
        if value is not None and value.shape is not None and not isinstance(value.shape[axis], int):
            yield at(node, f"{value.name} is scanned along an axis of no fixed size", STATIC)


def _goes_on(body: ir.Graph) -> bool:
    """Whether the condition of a loop is a constant, or the one that it began with."""
    condition: ir.Value | None = body.outputs[0]
    while condition is not None and (node := condition.producer()) is not None and node.op_type == "Identity":
        condition = node.inputs[0]
    return condition is not None and (condition is body.inputs[1] or is_constant(condition))
