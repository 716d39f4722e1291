"""Operators of ONNX Runtime's com.microsoft domain, declared so that onnxscript can emit them."""

from __future__ import annotations

from functools import cache

import onnxscript
from onnx.defs import OpSchema, SchemaError, register_schema

DOMAIN = "com.microsoft"
FLOATS = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"]
BYTES = ["tensor(uint8)"]
SCALES = [*FLOATS, "tensor(float8e4m3fn)", "tensor(float8e8m0)"]
WHOLE = ["tensor(float)"]
KINDS = {"U": BYTES, "S": SCALES, "W": WHOLE}
MIXTURE = {
    "k": "INT",
    "normalize_routing_weights": "INT",
    "activation_type": "STRING",
    "swiglu_fusion": "INT",
    "activation_alpha": "FLOAT",
    "activation_beta": "FLOAT",
    "swiglu_limit": "FLOAT",
}


@cache
def contrib() -> onnxscript.values.Opset:
    """The opset whose calls make com.microsoft nodes; a None argument is an optional input left out."""
    _declare("MoE", ["input", "router_probs", "fc1", "fc1_bias?", "fc2", "fc2_bias?"], MIXTURE)
    first = ["fc1_codes:U", "fc1_scales:S", "fc1_bias?", "fc2_codes:U", "fc2_scales:S", "fc2_bias?"]
    unused = ["fc3_codes?:U", "fc3_scales?:S", "fc3_bias?"]  # a gate of its own, which the CPU does not take
    after = ["fc1_zeros?:U", "fc2_zeros?:U", "fc3_zeros?:U", "router_weights?", "fc1_whole?:W", "fc2_whole?:W"]
    packing = dict.fromkeys(("expert_weight_bits", "block_size", "weights_prepacked"), "INT") | {"quant_type": "STRING"}
    _declare("QMoE", ["input", "router_probs", *first, *unused, *after], MIXTURE | packing)
    _declare(
        "MatMulNBits",
        ["A", "B:U", "scales", "zeros?:U", "order?:U", "bias?"],
        dict.fromkeys(("K", "N", "bits", "block_size"), "INT"),
    )
    return onnxscript.values.Opset(DOMAIN, 1)


def _declare(name: str, inputs: list[str], attributes: dict[str, str]) -> None:
    """Inputs are `name`, `name?` where it may be left out, and `name:U` for bytes, `:S` for scales, `:W` for float32."""
    option = OpSchema.FormalParameterOption

    def parameter(label: str) -> OpSchema.FormalParameter:
        bare, _, kind = label.partition(":")
        optional = option.Optional if bare.endswith("?") else option.Single
        return OpSchema.FormalParameter(bare.rstrip("?"), kind or "T", param_option=optional)

    kinds = {"T": FLOATS} | {k: types for k, types in KINDS.items() if any(label.endswith(f":{k}") for label in inputs)}
    schema = OpSchema(
        name,
        DOMAIN,
        1,
        inputs=[parameter(label) for label in inputs],
        outputs=[OpSchema.FormalParameter("output", "T")],
        type_constraints=[(kind, types, "") for kind, types in kinds.items()],
        attributes=[OpSchema.Attribute(n, getattr(OpSchema.AttrType, kind), required=False) for n, kind in attributes.items()],
    )
    try:
        register_schema(schema)
    except SchemaError:  # declared by somebody else in this process
        return
