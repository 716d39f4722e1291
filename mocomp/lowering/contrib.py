"""Operators of ONNX Runtime's com.microsoft domain, declared so that onnxscript can emit them."""

from __future__ import annotations

from functools import cache

import onnxscript
from onnx.defs import OpSchema, SchemaError, register_schema

DOMAIN = "com.microsoft"
FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]


@cache
def contrib() -> onnxscript.values.Opset:
    """The opset whose calls make com.microsoft nodes; a None argument is an optional input left out."""
    _declare(
        "MoE",
        ["input", "router_probs", "fc1", "fc1_bias?", "fc2", "fc2_bias?"],
        1,
        k="INT",
        normalize_routing_weights="INT",
        activation_type="STRING",
        swiglu_fusion="INT",
        activation_alpha="FLOAT",
        activation_beta="FLOAT",
        swiglu_limit="FLOAT",
    )
    return onnxscript.values.Opset(DOMAIN, 1)


def _declare(name: str, inputs: list[str], outputs: int, **attributes: str) -> None:
    option = OpSchema.FormalParameterOption

    def parameter(label: str) -> OpSchema.FormalParameter:
        bare = label.rstrip("?")
        return OpSchema.FormalParameter(bare, "T", param_option=option.Optional if label != bare else option.Single)

    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[parameter(label) for label in inputs],
        outputs=[OpSchema.FormalParameter(f"output_{i}", "T") for i in range(outputs)],
        type_constraints=[("T", FLOATS, "")],
        attributes=[OpSchema.Attribute(n, getattr(OpSchema.AttrType, kind), required=False) for n, kind in attributes.items()],
    )
    try:
        register_schema(schema)
    except SchemaError:  # declared by somebody else in this process
        return
