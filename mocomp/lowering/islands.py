"""Where a graph in 16 bits computes in float32 all the same.

A choice of experts and the weights of a softmax hang on small differences; angles and powers outgrow 11 bits of mantissa; a
multiplier of the model's code, such as 0.22, is none of the numbers that 16 bits have. Each of these is computed in float32,
from the product before it on or from the integers that it is made of.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch

from mocomp.errors import MocompError
from mocomp.weights.recipes import Recipe

DOMAIN = "mocomp"
NORMS = frozenset(("LayerNormalization", "RMSNormalization"))
PRODUCTS = frozenset(("MatMul", "Gemm", "Conv", "Einsum", "Attention", "RotaryEmbedding", "DequantizeLinear")) | NORMS
PRODUCTS |= frozenset(("MoE", "QMoE", "MatMulNBits", "GroupQueryAttention"))
"""What GPUs compute on 16 bits and sum up in float32 themselves."""
CHOICES = frozenset(("TopK", "Softmax", "LogSoftmax"))
"""What an island ends in: it reaches up to the products that are chosen from."""
WIDE = frozenset(("Cos", "Sin", "Exp", "Log", "Pow", "Sqrt", "Reciprocal", "Softplus", "ReduceMean", "ReduceL2", "Range"))
WIDE |= frozenset(("CumSum", "ReduceLogSumExp", "ReduceSumSquare", "Floor", "Ceil", "Round"))
"""Operators that are islands for themselves."""


class Kind(Enum):
    """What a float value is: an activation in 16 bits or in float32, a weight or made of weights alone, or made of constants
    alone, which are in whatever type they are read in."""

    NARROW = "narrow"
    WIDE = "wide"
    WEIGHT = "weight"
    CONSTANT = "constant"


class Islands:
    """`kinds` of the float values of a graph in float32, the numbers of its `constants`, and which of its nodes stay there."""

    def __init__(self, graph: ir.Graph, weights: dict[str, Recipe], narrow_inputs: Iterable[ir.Value], narrow: np.dtype):
        self.kinds: dict[ir.Value, Kind] = {}
        self._wide: set[ir.Node] = set()
        self._narrow = narrow
        for value in graph.inputs:
            if is_float(value):
                self.kinds[value] = Kind.NARROW if value in narrow_inputs else Kind.WIDE
        self.constants: dict[ir.Value, np.ndarray] = {}
        for name, value in graph.initializers.items():
            if is_float(value):
                constant = _constant(value, weights.get(name))
                self.kinds[value] = Kind.WEIGHT if constant is None else Kind.CONSTANT
                self.constants |= {} if constant is None else {value: constant}
        nodes = list(graph)
        self._of_weights = self._made_of_weights(nodes)
        self._wide |= self._before_choices(nodes)
        self._wide |= {node for node in nodes if scales_scales(node) or self._multiplies(node)}
        for node in nodes:
            self._decide(node)
        for node in reversed(nodes):
            self._follow_readers(node)

    def is_wide(self, node: ir.Node) -> bool:
        """Whether a node computes in float32."""
        return node in self._wide

    def _made_of_weights(self, nodes: list[ir.Node]) -> set[ir.Value]:
        found = {value for value, kind in self.kinds.items() if kind is Kind.WEIGHT}
        for node in nodes:
            read = floats(node.inputs)
            if read and all(value in found for value in read) and not any(v.dtype == ir.DataType.INT64 for v in node.outputs):
                found |= set(node.outputs)
        return found

    def _before_choices(self, nodes: list[ir.Node]) -> set[ir.Node]:
        """The nodes between products and what is chosen from them."""
        waiting, seen = [value for node in nodes for value in _chosen_from(node)], set()
        found = {node for node in nodes if node.op_type in CHOICES or is_route(node)}
        while waiting:
            value = waiting.pop()
            node = value.producer()
            if value in seen or node is None or value in self._of_weights or is_product(node):
                continue
            seen.add(value)
            found.add(node)
            waiting += [v for v in node.inputs if v is not None and (is_float(v) or v.dtype == ir.DataType.BOOL)]
        return found

    def _multiplies(self, node: ir.Node) -> bool:
        """Whether one of its inputs is a number that the narrow type has not; one beyond its range is a mask's."""
        return any(_is_inexact(self.constants[value], self._narrow) for value in node.inputs if value in self.constants)

    def _decide(self, node: ir.Node) -> None:
        """The kind of what a node gives, by what it reads, in the order of the graph."""
        read = [self.kinds[value] for value in floats(node.inputs)]
        made = [value for value in node.outputs if is_float(value)]
        if node in self._wide or node.op_type in WIDE or (made and not read and node.op_type == "Cast"):
            kind = Kind.WIDE
        elif Kind.NARROW in read or (is_product(node) and (Kind.WEIGHT in read or node.domain == DOMAIN)):
            kind = Kind.NARROW
        elif Kind.WIDE in read:
            kind = Kind.WIDE
        else:
            kind = Kind.WEIGHT if Kind.WEIGHT in read else Kind.CONSTANT
        if kind is Kind.WIDE:
            self._wide.add(node)
        self.kinds |= dict.fromkeys(made, kind)

    def _follow_readers(self, node: ir.Node) -> None:
        """A node that is made of constants alone is where those are that read it."""
        made = [value for value in node.outputs if self.kinds.get(value) is Kind.CONSTANT]
        readers = [use.node for value in made for use in value.uses()]
        if readers and all(reader in self._wide for reader in readers):
            self._wide.add(node)


def is_float(value: ir.Value) -> bool:
    """Whether it is float32 before anything is narrowed."""
    return value.dtype == ir.DataType.FLOAT


def floats(values: Iterable[ir.Value | None]) -> list[ir.Value]:
    """Those that are float32."""
    return [value for value in values if value is not None and is_float(value)]


def is_route(node: ir.Node) -> bool:
    """Whether it calls a router's function."""
    return node.domain == DOMAIN and names_route(node.op_type)


def names_inner(function: str) -> bool:
    """Whether a function of the mixture's domain is what an expert does between its products."""
    return function.startswith("Inner")


def names_route(function: str) -> bool:
    """Whether a function of the mixture's domain is a router's."""
    return function.startswith("Route")


def scales_scales(node: ir.Node) -> bool:
    """Whether a DequantizeLinear unpacks scales, or has its own unpacked: a number of a scale is too small for 16 bits."""
    if node.op_type != "DequantizeLinear" or node.inputs[1] is None:
        return False
    return not node.inputs[1].is_initializer() or any(
        use.node.op_type == "DequantizeLinear" and use.idx == 1 for use in node.outputs[0].uses()
    )


def is_product(node: ir.Node) -> bool:
    """Whether it multiplies by weights, or calls the function of a layer's experts."""
    return node.op_type in PRODUCTS or (node.domain == DOMAIN and not is_route(node))


def _chosen_from(node: ir.Node) -> list[ir.Value]:
    """The values that a node chooses from."""
    if node.op_type in CHOICES:
        return floats(node.inputs[:1])
    if node.op_type in ("MoE", "QMoE"):
        return floats([node.inputs[1], node.inputs[14] if len(node.inputs) > 14 else None])
    return floats(node.inputs) if is_route(node) else []


def _is_inexact(number: np.ndarray, narrow: np.dtype) -> bool:
    if number.size != 1 or not np.abs(number) <= float(ml_dtypes.finfo(narrow).max):
        return False
    return bool(number.astype(narrow).astype(np.float32) != number)


def _constant(value: ir.Value, recipe: Recipe | None) -> np.ndarray | None:
    """The numbers of an initializer that are the model's code's and no checkpoint's, such as the frequencies of angles."""
    if recipe is None:
        return None if value.const_value is None else value.const_value.numpy()
    return None if any(True for _ in recipe.leaves()) else recipe.evaluate(_no_reader).numpy()


def _no_reader(name: str, start: int, stop: int) -> torch.Tensor:
    raise MocompError(f"{name} is read where no checkpoint is", where="lowering")
