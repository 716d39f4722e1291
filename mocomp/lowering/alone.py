"""The experts of one layer cut out of a graph, whatever nodes they are made of.

Dimension letters: T tokens, E experts, K chosen per token, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from mocomp.lowering.packed_weights import factor_of_inputs

WORDS = ("x", "ids", "weights")
TOKENS = "tokens"


def alone(model: ir.Model, ends: Sequence[str], y: str) -> ir.Model:
    """The nodes from the values `ends`, which are x [T, H], ids and weights [T, K], to `y`; these are its inputs, by those
    words, and its output."""
    graph = ir.convenience.extract(model.graph, list(ends), [y])
    for value, word in [*zip(graph.inputs, WORDS, strict=True), (graph.outputs[0], "y")]:
        value.name = word
        value.shape = None if value.shape is None else ir.Shape([TOKENS, *value.shape[1:]])
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def experts_of(single: ir.Model) -> int:
    """E, of the experts in a graph of theirs alone: the first dimension of their weights."""
    banks = [value.shape for value in single.graph.initializers.values() if value.shape is not None]
    return next(int(shape[0]) for shape in banks if shape.rank() == 3)


def factor_of(model: ir.Model, x: str) -> np.ndarray | None:
    """What the value that experts are given is multiplied by before, for the sake of quantised weights, [H], or None."""
    value = next((value for node in model.graph for value in node.outputs if value.name == x), None)
    return None if value is None else factor_of_inputs(ir.Node("", "Identity", [value]))
