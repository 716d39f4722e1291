"""What keeps an ONNX graph from being one of the standard alone, as any runtime may read it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from mocomp.capability import Gap, gathered
from mocomp.capability.graphs import STANDARD, at, laid_open, nodes_of

OPSETS = range(21, 25)
"""Those that mocomp writes: both runtimes that it knows read them."""


def graph_gaps(model: ir.Model) -> list[Gap]:
    """Operators of other domains, those that the opset has not, and opsets that few runtimes read. Local functions are of the
    standard where their bodies are."""
    return gathered([*_opset(model), *(gap for node in nodes_of(laid_open(model)) for gap in _of_node(node, opset_of(model)))])


def opset_of(model: ir.Model) -> int | None:
    """The version of the standard that a graph is written in, if it says one."""
    return next((model.opset_imports[domain] for domain in STANDARD if domain in model.opset_imports), None)


def _opset(model: ir.Model) -> Iterator[Gap]:
    opset = opset_of(model)
    if opset is not None and opset not in OPSETS:
        wanted = f"runtimes that mocomp knows all read {OPSETS[0]} to {OPSETS[-1]}"
        yield Gap("the graph", f"opset {opset}", f"{wanted}: --opset {OPSETS[-1]}", blocks=False)


def _of_node(node: ir.Node, opset: int | None) -> Iterator[Gap]:
    if node.domain not in STANDARD:
        yield at(node, f"{node.domain}.{node.op_type} is not of the standard", "--target onnx makes a graph without it")
    elif opset is not None and not onnx.defs.has(node.op_type, max_inclusive_version=opset):
        yield at(node, f"the standard has no {node.op_type} in opset {opset}", "a higher --opset")
