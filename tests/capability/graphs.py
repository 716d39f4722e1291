"""Small graphs in ONNX's own notation."""

from __future__ import annotations

import onnx_ir as ir
from onnx import parser


def graph(
    body: str,
    inputs: str = "float[T, 8] x",
    outputs: str = "float[T, 8] y",
    opset: int = 24,
    functions: str = "",
    ir_version: int = 10,
) -> ir.Model:
    """A model of the statements in `body`; the domains com.microsoft and mocomp are at hand."""
    domains = f'"" : {opset}, "com.microsoft" : 1, "mocomp" : 1'
    header = f"<ir_version: {ir_version}, opset_import: [{domains}]>"
    return ir.from_proto(parser.parse_model(f"{header} g ({inputs}) => ({outputs}) {{ {body} }} {functions}"))


def function(name: str, body: str, opset: int = 24) -> str:
    """A local function `mocomp.NAME` of x and y."""
    return f'<domain: "mocomp", opset_import: ["" : {opset}]> {name} (x) => (y) {{ {body} }}'
