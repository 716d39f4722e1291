"""Routing and experts on their way to ONNX: nodes that stand for functions which are not made yet.

`route` (logits, tensors ...) -> ids, weights, scores, and `experts` (x, ids, weights, w_in, b_in, w_out, b_out) -> y, in
mocomp's domain, each with the text of its kind as `spec`.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import onnxscript
from onnx.defs import OpSchema, SchemaError, register_schema

from mocomp.ir.rewrite import MOCOMP
from mocomp.lowering.branches import DOMAIN

ROUTE, EXPERTS = "route", "experts"
MOST_TENSORS = 4
"""Tensors of its own that a router may have."""
TYPES = [("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], ""), ("I", ["tensor(int64)"], "")]


@cache
def placeholders() -> onnxscript.values.Opset:
    """The opset whose calls make them, declared so that onnxscript can emit them."""
    _declare(ROUTE, ["logits:T", *(f"tensor{i}:T?" for i in range(MOST_TENSORS))], ["ids:I", "weights:T", "scores:T"])
    _declare(EXPERTS, ["x:T", "ids:I", "weights:T", "w_in:T", "b_in:T?", "w_out:T", "b_out:T?"], ["y:T"])
    return onnxscript.values.Opset(DOMAIN, 1)


def _declare(name: str, inputs: list[str], outputs: list[str]) -> None:
    """Each is `name:type`, with `?` behind where it may be left out."""
    option = OpSchema.FormalParameterOption

    def parameter(label: str) -> OpSchema.FormalParameter:
        word, _, kind = label.partition(":")
        return OpSchema.FormalParameter(word, kind[0], param_option=option.Optional if kind[1:] else option.Single)

    spec = OpSchema.Attribute("spec", OpSchema.AttrType.STRING, required=True)
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[parameter(label) for label in inputs],
        outputs=[parameter(label) for label in outputs],
        type_constraints=TYPES,
        attributes=[spec],
    )
    try:
        register_schema(schema)
    except SchemaError:  # declared by somebody else in this process
        return


def _route(logits: Any, tensors: Any, spec: str) -> Any:
    return placeholders().route(logits, *tensors, spec=spec)[:2]


def _experts(x: Any, ids: Any, weights: Any, w_in: Any, b_in: Any, w_out: Any, b_out: Any, spec: str) -> Any:
    return placeholders().experts(x, ids, weights, w_in, b_in, w_out, b_out, spec=spec)


TRANSLATIONS = {MOCOMP.route.default: _route, MOCOMP.experts.default: _experts}
