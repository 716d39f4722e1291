"""The packed weights of a program that no operator of a target computes on: what they are called, and whose they are."""

from __future__ import annotations

from typing import Any

from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.quant import formats
from mocomp.quant.formats import Format


def packed(program: Program) -> dict[str, tuple[Format, tuple[int, ...]]]:
    """(format, shape) of each packed weight by its name."""
    return {name: (formats.parse(node.args[1]), tuple(node.meta["val"].shape)) for node, name in _names(program).items()}


def linears(program: Program) -> dict[str, str]:
    """The module of each linear layer of packed weights, by the weight's name."""
    return {name: scope(node) for node, name in _names(program).items() if node.meta["val"].dim() == 2}


def banks(program: Program) -> dict[str, list[str]]:
    """The names of the weights (of w_in, of w_out) of each layer of experts of which any are packed, by the layer.

    They are told apart by which is read first: by their order among the arguments of a mixture, and among the operators that
    it was expanded to.
    """
    unpacked = _names(program)
    known = {node: name for node, name in [*program.weights(), *unpacked.items()] if node.meta["val"].dim() == 3}
    read: dict[str, dict[str, None]] = {}
    for node in program.graph.nodes:
        if node not in unpacked:
            read.setdefault(scope(node), {}).update({known[n]: None for n in node.all_input_nodes if n in known})
    return {layer: list(names) for layer, names in read.items() if not set(unpacked.values()).isdisjoint(names)}


def _names(program: Program) -> dict[fx.Node, str]:
    """The name of the weight that each dequantize node unpacks."""
    names = {node: name for node, name in program.weights()}
    nodes = calls(program, MOCOMP.dequantize.default)
    parts: dict[fx.Node, Any] = {node: node.args[0] for node in nodes}
    return {node: names[codes].removesuffix(".codes") for node, (codes, *_) in parts.items()}
