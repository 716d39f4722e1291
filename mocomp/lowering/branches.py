"""A mixture that runs in several ways, by how many tokens there are, as one function of an ONNX model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import onnx
from onnx import parser

from mocomp.lowering.ways import Layer, Way
from mocomp.registry import discover

DOMAIN, OPSET, IR_VERSION = "mocomp", 23, 10


SIZE = """number_of_tokens = Shape <start = 0, end = 1> (x)
    its_only = Constant <value = int64[1] {0}> ()"""


@dataclass(frozen=True)
class Turn:
    """A way, for at most `tokens` tokens, those of the turns before it excepted; 0 is for all that are left."""

    way: str
    tokens: int = 0


def function(layer: Layer, turns: tuple[Turn, ...], name: str, opset: int = OPSET) -> onnx.FunctionProto:
    """(x [T, H], what tells its experts, weights ...) -> y [T, H], the inputs in the order of `layer.parameters`."""
    inputs = ", ".join(layer.parameters)
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}, "{layer.domain}" : 1]>'
    return parser.parse_function(f"{head} {name} ({inputs}) => (y) {{\n{_statements(layer, turns, 'y', 0)}\n}}")


def _statements(layer: Layer, turns: tuple[Turn, ...], y: str, depth: int) -> str:
    first, *others = turns
    if not others:
        return way(first.way).body(layer, y)
    few, many = f"{y}_few", f"{y}_many"
    size = "" if depth else SIZE
    return f"""{size}
        limit{depth} = Constant <value = int64[1] {{{first.tokens}}}> ()
        is_few{depth} = LessOrEqual (number_of_tokens, limit{depth})
        few{depth} = Squeeze (is_few{depth}, its_only)
        {y} = If (few{depth}) <
          then_branch = few_tokens () => (float[?, {layer.hidden}] {few}) {{ {way(first.way).body(layer, few)} }},
          else_branch = many_tokens () => (float[?, {layer.hidden}] {many}) {{
            {_statements(layer, tuple(others), many, depth + 1)} }}
        >"""


@cache
def way(name: str) -> Way:
    """The way of that name."""
    return discover("mocomp.lowering.ways", "Way")[name]()


def alone(layer: Layer, turns: tuple[Turn, ...]) -> onnx.ModelProto:
    """A model of one mixture and nothing else; its weights are initializers as `layer` has them, without data."""
    types, shapes = dict(layer.types), dict(layer.shapes)
    domains = ", ".join(f'"{domain}" : 1' for domain in {DOMAIN: 1, layer.domain: 1})
    inputs = ", ".join(name if layer.has(name) else "" for name in layer.parameters)
    given = ", ".join(f"{kind} {name}" for name, kind in layer.tokens.items())
    model = parser.parse_model(f"""<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}, {domains}]>
        mixture ({given}) => (float[T, {layer.hidden}] y) {{ y = {DOMAIN}.Experts ({inputs}) }}""")
    model.functions.extend([*layer.functions(OPSET), function(layer, turns, "Experts")])
    for name in (name for name in layer.inputs if name in shapes):
        tensor = model.graph.initializer.add()
        tensor.name, tensor.data_type = name, onnx.TensorProto.DataType.Value(types[name].upper())
        tensor.dims.extend(shapes[name])
    return model
