"""Mixtures as `TRT_MoE`, the node that TensorRT's parser makes an IMoELayer of.

The node is at once a call of a model-local function of the same name, whose body is in standard operators: so any runtime
runs the graph, and what is proven of it on a CPU is the layout that the layer is given. Which of the two TensorRT's parser
takes was read in its source (onnx-tensorrt 10.1, ModelImporter.cpp: importers first, by op_type alone), and not run.
Dimension letters: T tokens, E experts, K chosen, H hidden, F expert width.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx import parser

from mocomp.experts import Expert
from mocomp.experts.glu import GLU
from mocomp.lowering.branches import DOMAIN
from mocomp.weights.recipes import Recipe, permute, slice_of

OPERATOR = "TRT_MoE"
SILU = 1
"""The attribute activation_type of SwiGLU (docs/TRT_custom_ops.md of onnx-tensorrt)."""


def obstacle(expert: Expert, biased: tuple[bool, bool], packed: bool) -> str | None:
    """Why IMoELayer does not compute experts of that kind, or None; `biased` is whether w_in and w_out have biases."""
    if expert != GLU("silu"):
        return f"IMoELayer computes SwiGLU without parameters, not {expert}"
    if biased[0] != biased[1]:
        return "IMoELayer takes all biases or none"
    if packed:
        return "IMoELayer takes quantised weights with quantised activations alone, which this artifact has not"
    return None


def replace(model: ir.Model, node: ir.Node, weights: dict[str, Recipe]) -> None:
    """Replace an Experts call (x [T, H], ids [T, K], weights [T, K], w_in [E, 2F, H], b_in, w_out [E, H, F], b_out) -> y by a
    TRT_MoE node, which takes gate and up [E, H, F] and down [E, F, H]; `weights`, the recipes of the initializers, follow."""
    x, ids, scores, w_in, b_in, w_out, b_out = (node.inputs[i] if i < len(node.inputs) else None for i in range(7))
    y = node.outputs[0]
    assert x is not None and ids is not None and scores is not None and w_in is not None and w_out is not None
    bank = [
        *_halves(model, w_in, weights),
        _put(model, f"{w_out.name}.in_out", permute(weights[_name(w_out)], (0, 2, 1)), weights, w_out),
    ]
    if b_in is not None and b_out is not None:
        bank += [*_halves(model, b_in, weights), b_out]
    made: list[ir.Node] = []

    def add(operator: str, inputs: list[ir.Value], kind: ir.DataType | None, domain: str = "", **attributes: int) -> ir.Value:
        made.append(ir.node(operator, inputs, attributes, domain=domain))
        made[-1].outputs[0].dtype = kind
        return made[-1].outputs[0]

    first = _constant(made, [0])
    kind = x.dtype or ir.DataType.FLOAT
    x_1 = add("Unsqueeze", [x, first], kind)
    ids_1 = add("Cast", [add("Unsqueeze", [ids, first], ids.dtype)], ir.DataType.INT32, to=int(ir.DataType.INT32))
    same = scores if scores.dtype in (kind, None) else add("Cast", [scores], kind, to=int(kind))
    scores_1 = add("Unsqueeze", [same, first], kind)
    y_1 = add(OPERATOR, [x_1, ids_1, scores_1, *bank], kind, DOMAIN, activation_type=SILU)
    out = add("Squeeze", [y_1, first], kind)
    out.name, out.type, out.shape, y.name = y.name, y.type, y.shape, None
    model.graph.insert_before(node, made)
    y.replace_all_uses_with(out, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)
    _drop(model, [value for value in (w_in, b_in, w_out) if value is not None], weights)
    _define(model, biased=len(bank) > 3)


def bank_of(last: ir.Node) -> tuple[np.ndarray, np.ndarray]:
    """(w_in [E, 2F, H] gate rows then up rows, w_out [E, H, F]), float32, of the mixture that ends in the node `last`."""
    y = last.inputs[0]
    node = y.producer() if y is not None else None
    assert node is not None and node.op_type == OPERATOR
    tensors = [value.const_value for value in node.inputs[3:6] if value is not None]
    gate, up, down = (tensor.numpy().astype(np.float32).swapaxes(1, 2) for tensor in tensors if tensor is not None)
    return np.concatenate([gate, up], axis=1), down


def _halves(model: ir.Model, value: ir.Value, weights: dict[str, Recipe]) -> list[ir.Value]:
    """Gate and up rows of [E, 2F, ...], each transposed where it is a matrix."""
    recipe = weights[_name(value)]
    rows = recipe.shape[1] // 2
    order = (0, 2, 1) if len(recipe.shape) == 3 else (0, 1)
    ends = {"gate": (0, rows), "up": (rows, 2 * rows)}
    return [
        _put(model, f"{value.name}.{part}", permute(slice_of(recipe, 1, *between), order), weights, value)
        for part, between in ends.items()
    ]


def _put(model: ir.Model, name: str, recipe: Recipe, weights: dict[str, Recipe], like: ir.Value) -> ir.Value:
    """An initializer without data, and its recipe; that of an earlier node with the same weights, if there is one."""
    if name not in model.graph.initializers:
        value = ir.Value(name=name, type=like.type, shape=ir.Shape(recipe.shape))
        model.graph.initializers[name] = value
    weights[name] = recipe
    return model.graph.initializers[name]


def _drop(model: ir.Model, values: list[ir.Value], weights: dict[str, Recipe]) -> None:
    """Forget initializers that nothing reads any more."""
    for value in values:
        if not value.uses():
            del model.graph.initializers[_name(value)], weights[_name(value)]


def _define(model: ir.Model, biased: bool) -> None:
    """Give the model the function TRT_MoE, for x [1, T, H], ids [1, T, K] int32 and scores [1, T, K].

    One that has biases serves nodes without them no more than the other way round, and a model's mixtures are alike.
    """
    biases = ", b_gate, b_up, b_down" if biased else ""
    opset = model.opset_imports[""]
    text = f"""<domain: "{DOMAIN}", opset_import: ["" : {opset}]>
    {OPERATOR} <activation_type> (x, ids, scores, gate, up, down{biases}) => (y) {{
        first = Constant <value = int64[1] {{0}}> ()
        middle = Constant <value = int64[1] {{1}}> ()
        last = Constant <value = int64[1] {{2}}> ()
        tokens = Squeeze (x, first)
        {_product("g", "tokens", "gate", "b_gate" if biased else "")}
        {_product("u", "tokens", "up", "b_up" if biased else "")}
        slope = Sigmoid (g)
        active = Mul (g, slope)
        inner = Mul (active, u)
        {_product("z", "inner", "down", "b_down" if biased else "")}
        by_token = Transpose <perm = [1, 0, 2]> (z)
        chosen = Squeeze (ids, first)
        chosen_long = Cast <to = 7> (chosen)
        index = Unsqueeze (chosen_long, last)
        each = GatherND <batch_dims = 1> (by_token, index)
        share = Squeeze (scores, first)
        share_column = Unsqueeze (share, last)
        weighted = Mul (each, share_column)
        summed = ReduceSum <keepdims = 0> (weighted, middle)
        y = Unsqueeze (summed, first)
    }}"""
    made = ir.serde.deserialize_function(parser.parse_function(text))
    model.functions[made.identifier()] = made
    model.opset_imports[DOMAIN] = 1


def _product(y: str, x: str, w: str, b: str) -> str:
    """Statements from `x` [T, ...] and the weights of all experts to `y` [E, T, ...]."""
    if not b:
        return f"{y} = MatMul ({x}, {w})"
    return f"{y}_bare = MatMul ({x}, {w})\n{y}_row = Unsqueeze ({b}, middle)\n{y} = Add ({y}_bare, {y}_row)"


def _constant(made: list[ir.Node], numbers: list[int]) -> ir.Value:
    node = ir.node("Constant", [], {"value_ints": numbers})
    made.append(node)
    return node.outputs[0]


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name
