"""A float32 graph in float16 or bfloat16: its weights, activations and caches, but for the islands of `islands.py`.

What people feed and read stays float32, as numpy and tokenizers' surroundings know it; caches, which go round and round on the
device, are of the narrow type. A constant beyond its range, such as the lowest float32 of an additive mask, becomes half of the
lowest narrow number: a score can be added to that without giving -inf, and softmax of a row of -inf is no number.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from mocomp.errors import BadInput, Unsupported
from mocomp.lowering.islands import DOMAIN, Islands, is_float, names_inner, names_route
from mocomp.lowering.older_opsets import names_older
from mocomp.lowering.retyping import retype_attributes, retype_nodes
from mocomp.weights.recipes import Cast, Reader, Recipe, literal

TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
TORCH = {"float16": torch.float16, "bfloat16": torch.bfloat16}
NUMPY = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
CACHES = ("past_key_values.", "present.")
"""What names of inputs and outputs that are caches begin with."""
ALWAYS_FLOAT = {"QMoE": (15, 16, 17, 18)}
"""Inputs of operators that are float32 whatever they compute in: the scales of scales."""

BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
MOST_OF_A_SCALE = 1 / 8
"""By how much of itself rounding may change the scale of packed weights. Scales of 8 bits are often subnormal in float16, where
they still have some of its digits; nearer to zero none are left."""


def narrow(model: ir.Model, weights: dict[str, Recipe], dtype: str, parameters: Collection[str]) -> dict[str, Recipe]:
    """The recipes of all weights for a model that computes in `dtype`, float16 or bfloat16; the model is changed in place.

    Of the weights that float32 islands alone read, those stay float32 that are not among the `parameters`, such as the buffers
    with the biases of a router's choice: rounding a model to 16 bits rounds its parameters. Reading a weight raises BadInput
    where a number of it is beyond the range of the type, or a scale of a packed weight too small for it. Raises Unsupported for
    a graph with branches or loops of its own, which is not narrowed.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _refuse_bodies(model.graph, dtype)
    step = _Narrowing(model.graph, weights, dtype, parameters)
    for node in list(model.graph):
        step.retype(node)
    for i, value in enumerate(list(model.graph.outputs)):
        step.output(i, value)
    for value in list(model.graph.initializers.values()):
        if value.name not in weights and not value.uses() and not value.is_graph_output():
            model.graph.initializers.pop(str(value.name))
    for function in model.functions.values():
        if function.domain == DOMAIN and (names_inner(function.name) or names_older(function.name)):
            _keep_wide(function, TYPES[dtype])
        elif function.domain == DOMAIN and not names_route(function.name):
            retype_nodes(function.all_nodes(), {ir.DataType.FLOAT: TYPES[dtype]}, lambda array: clamped(array, NUMPY[dtype]))
    return step.weights


class _Narrowing:
    """The graph while it is narrowed, node by node, in its order."""

    def __init__(self, graph: ir.Graph, weights: dict[str, Recipe], dtype: str, parameters: Collection[str]):
        caches = [value for value in graph.inputs if str(value.name).startswith(CACHES)]
        self.graph, self.weights, self.dtype, self.parameters = graph, dict(weights), dtype, parameters
        self.narrow, self.type = TYPES[dtype], NUMPY[dtype]
        self.islands = Islands(graph, weights, caches, self.type)
        self.kinds = self.islands.kinds
        self.casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        for value in caches:
            if is_float(value):
                value.dtype = self.narrow
        for name in list(graph.initializers):
            self._weight(name)

    def _weight(self, name: str) -> None:
        """A parameter is stored narrow, and any weight that anything narrow reads; a constant has a copy for that where it is
        read in both."""
        value = self.graph.initializers[name]
        narrow = [self._type_of(use.node, use.idx) == self.narrow for use in value.uses()]
        constant = self.islands.constants.get(value)
        is_parameter = name in self.parameters and constant is None
        if value not in self.kinds or not (is_parameter or any(narrow)):
            return
        if name in self.weights and (constant is None or all(narrow)):
            kept = self.weights[name] if constant is None else literal(torch.from_numpy(self._within(constant)))
            self.weights[name] = narrowed(kept, name, self.dtype)
            value.dtype = self.narrow
        elif constant is not None:
            self.casts[value, self.narrow] = self._constant(f"{name}.{self.dtype}", self._within(constant).astype(self.type))

    def _type_of(self, node: ir.Node, i: int = 0) -> ir.DataType:
        """The type in which a node computes, and reads its i-th input."""
        wide = self.islands.is_wide(node) or i in ALWAYS_FLOAT.get(node.op_type, ())
        return ir.DataType.FLOAT if wide else self.narrow

    def retype(self, node: ir.Node) -> None:
        """Put a node, whose inputs are typed already, where it belongs."""
        kind = self._type_of(node)
        for i, value in enumerate(node.inputs):
            if value is not None and value in self.kinds:
                node.replace_input_with(i, self._as(value, self._type_of(node, i)))
        for value in node.outputs:
            if value in self.kinds:
                value.dtype = kind
        if any(value in self.kinds for value in node.outputs):
            retype_attributes(
                node, {ir.DataType.FLOAT: kind}, lambda array: clamped(array, self.type) if kind == self.narrow else array
            )

    def output(self, i: int, value: ir.Value) -> None:
        """Give a float output the type in which it is read: the caches' narrow, and others' float32."""
        if value not in self.kinds:
            return
        name = str(value.name)
        wanted = self.narrow if name.startswith(CACHES) else ir.DataType.FLOAT
        if value.dtype == wanted:
            return
        value.name = f"{name}.{self.dtype}"
        public = self._as(value, wanted)
        public.name, public.shape = name, value.shape
        self.graph.outputs[i] = public

    def _as(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        """A value in a type, by a Cast behind it where it is in another."""
        if value.dtype == kind:
            return value
        if (value, kind) not in self.casts:
            self.casts[value, kind] = self._cast(value, kind)
        return self.casts[value, kind]

    def _cast(self, value: ir.Value, kind: ir.DataType) -> ir.Value:
        producer = value.producer()
        if kind == self.narrow and producer is not None and self._outgrows(value):
            far = np.float32(_far(self.type))
            ends = [self._constant(f"constant/{end}", np.array(end)) for end in (-far, far)]
            clip = ir.Node("", "Clip", [value, *ends])
            clip.outputs[0].dtype, clip.outputs[0].shape, clip.outputs[0].name = value.dtype, value.shape, f"{value.name}/clip"
            self.graph.insert_after(producer, clip)
            value, producer = clip.outputs[0], clip
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(kind))])
        made = node.outputs[0]
        made.dtype, made.shape, made.name = kind, value.shape, f"{value.name}/{kind.name.lower()}"
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return made

    def _constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A constant of the graph, by its name."""
        if name not in self.graph.initializers:
            tensor = ir.tensor(array, name=name)
            value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor)
            self.graph.register_initializer(value)
        return self.graph.initializers[name]

    def _within(self, array: np.ndarray) -> np.ndarray:
        """A constant, float32, in the range of the narrow type."""
        return within(array, self.type)

    def _outgrows(self, value: ir.Value) -> bool:
        """Whether a float32 value may be beyond the narrow range, as what is made of such a constant may."""
        waiting, seen = [value], set()
        while waiting:
            value = waiting.pop()
            if value in seen or value.dtype != ir.DataType.FLOAT:
                continue
            seen.add(value)
            if value in self.islands.constants and _is_beyond(self.islands.constants[value], self.type).any():
                return True
            producer = value.producer()
            waiting += [] if producer is None or producer.op_type == "Clip" else [v for v in producer.inputs if v is not None]
        return False


def _refuse_bodies(graph: ir.Graph, dtype: str) -> None:
    """A graph is narrowed node by node, which does not see the bodies of If, Loop and Scan."""
    for node in graph:
        if any(attribute.type in BODIES for attribute in node.attributes.values()):
            raise Unsupported(f"{node.op_type} of the model's own, in {dtype}", where=str(node.name), fix="Leave out --dtype.")


def _keep_wide(function: ir.Function, narrow: ir.DataType) -> None:
    """A function that is float32 inside: what an expert does between its products has numbers, such as 1.702, that 16 bits have
    not; norms and attention of an older opset square and sum, which the operators that they stand for do in float32."""
    for value in function.inputs:
        uses = list(value.uses())
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(ir.DataType.FLOAT))])
        cast.outputs[0].name = f"{value.name}_float"
        for use in uses:
            use.node.replace_input_with(use.idx, cast.outputs[0])
        function.insert_before(function[0], cast)
    for i, value in enumerate(list(function.outputs)):
        cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(narrow))])
        cast.outputs[0].name, value.name = value.name, f"{value.name}_float"
        function.append(cast)
        function.outputs[i] = cast.outputs[0]


@dataclass(frozen=True)
class Narrowed(Cast):
    """The numbers of a recipe in 16 bits, of the weight `name`. Reading raises BadInput where one is too large for them, or is
    a scale of which they would make another one."""

    name: str

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        wide = self.source.rows(read, start, stop)
        small = wide.to(self.dtype)
        kind = str(self.dtype).removeprefix("torch.")
        if not torch.equal(small.isinf(), wide.isinf()):
            raise BadInput(f"a number beyond the range of {kind}", where=self.name, fix="Convert with --dtype bfloat16.")
        if self.name.endswith(".scales") and bool(((small - wide).abs() > MOST_OF_A_SCALE * wide.abs()).any()):
            raise BadInput(f"a scale too small for {kind}", where=self.name, fix="Convert with --dtype bfloat16.")
        return small


def narrowed(recipe: Recipe, name: str, dtype: str) -> Recipe:
    """The recipe of the weight `name` in 16 bits."""
    return Narrowed(recipe.shape, TORCH[dtype], recipe, name)


def clamped(array: np.ndarray, kind: np.dtype) -> np.ndarray:
    """A constant in a narrow type, finite where it was."""
    return within(array, kind).astype(kind)


def within(array: np.ndarray, kind: np.dtype) -> np.ndarray:
    """A float32 constant with what is beyond the range of a narrow type, but finite, brought into it."""
    return np.where(_is_beyond(array, kind), np.copysign(np.float32(_far(kind)), array), array).astype(np.float32)


def _is_beyond(array: np.ndarray, kind: np.dtype) -> np.ndarray:
    return np.isfinite(array) & (np.abs(array) > float(ml_dtypes.finfo(kind).max))


def _far(kind: np.dtype) -> float:
    """Half of the largest number of a type."""
    return float(ml_dtypes.finfo(kind).max) / 2
