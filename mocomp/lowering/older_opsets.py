"""What opset 23 brought to ONNX, as model-local functions in the operators of opset 21.

Dimension letters: B batch, S sequence, N query heads, J key heads, P past and present positions, D head width, H hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
from onnx import parser

from mocomp.errors import Unsupported
from mocomp.lowering.branches import DOMAIN

FIRST, DIRECT = 21, 23
"""The oldest opset, and the first that needs none of this."""

FIX = f"Leave out --opset, or say {DIRECT}."


def to_older(model: ir.Model, opset: int) -> None:
    """Replace, in place, what `opset` does not know by calls of functions; nodes that are alike share one. Raises Unsupported
    for one of them in the body of a branch or a loop, and for attention that has no such function."""
    hidden = next((node for node in model.graph.all_nodes() if is_newer(node) and node.graph is not model.graph), None)
    if hidden is not None:
        raise Unsupported(f"{hidden.op_type} in a branch or a loop, before opset {DIRECT}", where=str(hidden.name), fix=FIX)
    names: dict[str, str] = {}
    for node in list(model.graph):
        if is_newer(node):
            name, text_of = FUNCTIONS[node.op_type]
            text = text_of(node)
            same = sum(made.startswith(name) for made in names.values())
            made = names.setdefault(text, name if not same else f"{name}{same + 1}")
            _call(model, node, made, text, opset)
        elif node.op_type == "DequantizeLinear":
            node.attributes.pop("output_dtype", None)  # it is the type of the scales, which is all that opset 21 offers


def is_newer(node: ir.Node) -> bool:
    """Whether it is of an operator that came with opset 23."""
    return node.domain == "" and node.op_type in FUNCTIONS


def _call(model: ir.Model, node: ir.Node, name: str, text: str, opset: int) -> None:
    made = ir.from_proto(parser.parse_function(f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]> {name} {text}'))
    model.functions[made.identifier()] = made
    model.opset_imports[DOMAIN] = 1
    node.domain, node.op_type = DOMAIN, name
    node.attributes.clear()


def _attention(node: ir.Node) -> str:
    """q [B, N, S, D], k [B, J, P, D], v [B, J, P, D'], mask [B, 1 or N, S, P] -> y [B, N, S, D']; query groups are rows."""
    said = {name for name, attribute in node.attributes.items() if attribute.value}
    unknown = said - {"scale", "softcap"}
    q, k, *_ = node.inputs
    if unknown or q is None or k is None or q.shape is None or k.shape is None or len(node.inputs) > 4:
        raise Unsupported(f"Attention with {', '.join(sorted(unknown)) or 'a cache'} before opset 23", where=str(node.name))
    heads, width, groups = (int(size) for size in (q.shape[1], q.shape[3], k.shape[1]))
    cap = node.attributes.get_float("softcap", 0.0)
    has_mask = len(node.inputs) > 3 and node.inputs[3] is not None
    capped = f"""cap = Constant <value_float = {cap}> ()
        over = Div (scores, cap)
        tanh = Tanh (over)
        capped = Mul (tanh, cap)"""
    return f"""(q, k, v{", mask" if has_mask else ""}) => (y) {{
        groups = Constant <value = int64[4] {{0, {groups}, -1, {width}}}> ()
        heads = Constant <value = int64[2] {{0, {heads}}}> ()
        in_groups = Constant <value = int64[3] {{0, {groups}, -1}}> ()
        rest = Constant <value = int64[1] {{-1}}> ()
        scale = Constant <value_float = {node.attributes.get_float("scale", width**-0.5)!r}> ()
        queries = Shape <start = 2, end = 3> (q)
        keys = Shape <start = 2, end = 3> (k)
        q_groups = Reshape (q, groups)
        q_scaled = Mul (q_groups, scale)
        k_columns = Transpose <perm = [0, 1, 3, 2]> (k)
        products = MatMul (q_scaled, k_columns)
        by_head = Concat <axis = 0> (heads, queries, keys)
        scores = Reshape (products, by_head)
        {capped if cap else ""}
        {f"masked = Add ({'capped' if cap else 'scores'}, mask)" if has_mask else ""}
        shares = Softmax <axis = -1> ({"masked" if has_mask else "capped" if cap else "scores"})
        by_group = Concat <axis = 0> (in_groups, keys)
        shares_g = Reshape (shares, by_group)
        y_groups = MatMul (shares_g, v)
        of_heads = Concat <axis = 0> (heads, queries, rest)
        y = Reshape (y_groups, of_heads)
    }}"""


def _rms_norm(node: ir.Node) -> str:
    """x [..., H], weight [H] -> y [..., H]."""
    return f"""(x, weight) => (y) {{
        last = Constant <value = int64[1] {{-1}}> ()
        epsilon = Constant <value_float = {node.attributes["epsilon"].as_float()!r}> ()
        squares = Mul (x, x)
        mean = ReduceMean <keepdims = 1> (squares, last)
        variance = Add (mean, epsilon)
        root = Sqrt (variance)
        normed = Div (x, root)
        y = Mul (normed, weight)
    }}"""


def _rotary(node: ir.Node) -> str:
    """x [B, N, S, D], cos and sin [B, S, D / 2] -> y [B, N, S, D]."""
    return """(x, cos, sin) => (y) {
        of_heads = Constant <value = int64[1] {1}> ()
        cos_h = Unsqueeze (cos, of_heads)
        sin_h = Unsqueeze (sin, of_heads)
        first, second = Split <axis = 3, num_outputs = 2> (x)
        first_cos = Mul (first, cos_h)
        second_sin = Mul (second, sin_h)
        second_cos = Mul (second, cos_h)
        first_sin = Mul (first, sin_h)
        y_first = Sub (first_cos, second_sin)
        y_second = Add (second_cos, first_sin)
        y = Concat <axis = 3> (y_first, y_second)
    }"""


FUNCTIONS: dict[str, tuple[str, Callable[[ir.Node], str]]] = {
    "Attention": ("GroupedAttention", _attention),
    "RMSNormalization": ("RmsNorm", _rms_norm),
    "RotaryEmbedding": ("Rotary", _rotary),
}
"""By what a node is: the name of the function, and its text. The names are none of operators: parsers look by name alone."""


def names_older(function: str) -> bool:
    """Whether a function of the mixture's domain stands for an operator that came with opset 23."""
    return function.startswith(tuple(name for name, _ in FUNCTIONS.values()))
