"""A graph as a runtime's parser sees it: without local functions, and with the types of its values."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from mocomp.capability import Gap

STANDARD = ("", "ai.onnx")
LARGE = 4096
"""Elements up to which a constant is looked into; axes, sizes and zero points are small, weights are not."""


def laid_open(model: ir.Model, keep: Callable[[ir.Function], bool] = lambda function: False) -> ir.Model:
    """A copy with the bodies of local functions, but those to `keep`, in place of their calls, and with the types and shapes
    that inference finds."""
    copy = model.clone()
    InlinePass(criteria=lambda function: not keep(function))(copy)
    ShapeInferencePass(check_type=False, strict_mode=False)(copy)
    return copy


def nodes_of(model: ir.Model) -> list[ir.Node]:
    """Every node of the graph and of graphs inside it."""
    return list(model.graph.all_nodes())


def name_of(node: ir.Node) -> str:
    """What to call a node in a message."""
    given = node.name or next((value.name for value in node.outputs if value.name), None)
    return f"{given} ({node.op_type})" if given else node.op_type


def at(node: ir.Node, why: str, instead: str = "", blocks: bool = True) -> Gap:
    """A gap of a node."""
    return Gap(name_of(node), why, instead, blocks)


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input that may be left out."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_constant(value: ir.Value) -> bool:
    """Whether a value is the same in every run: a constant or an initializer, or made of nothing else."""
    waiting, seen = [value], {value}
    while waiting:
        current = waiting.pop()
        node = current.producer()
        if current.const_value is not None or current.is_initializer() or (node is not None and node.op_type == "Constant"):
            continue
        if node is None or not node.inputs:
            return False
        before = [given for given in node.inputs if given is not None and given not in seen]
        waiting += before
        seen.update(before)
    return True


def array_of(value: ir.Value | None, largest: int = LARGE) -> np.ndarray | None:
    """The numbers of a constant of not more than `largest` elements; None for what is not known, or has no data here."""
    if value is None:
        return None
    tensor = value.const_value
    node = value.producer()
    if tensor is None and node is not None and node.op_type == "Constant":
        tensor = ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > largest:
        return None
    try:
        return tensor.numpy()
    except OSError:
        return None


def rank_of(value: ir.Value | None) -> int | None:
    """The number of dimensions, None where it is not known."""
    return None if value is None or value.shape is None else value.shape.rank()


def sizes_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """All dimensions, None where one is not a number."""
    if value is None or value.shape is None or not value.shape.is_static():
        return None
    return tuple(value.shape.numpy())


def integer(node: ir.Node, name: str, default: int = 0) -> int:
    """An attribute that is a whole number."""
    return node.attributes[name].as_int() if name in node.attributes else default


def text(node: ir.Node, name: str, default: str = "") -> str:
    """An attribute that is a text."""
    return node.attributes[name].as_string() if name in node.attributes else default


def number(node: ir.Node, name: str, default: float) -> float:
    """An attribute that is a number."""
    return node.attributes[name].as_float() if name in node.attributes else default
