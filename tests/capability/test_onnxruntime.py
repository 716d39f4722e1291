"""ONNX Runtime's rules on both devices: each broken by a planted node that is named, and kept by its twin."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mocomp.capability import Gap
from mocomp.capability.onnxruntime import CPU, TABLE, graph_gaps
from mocomp.capability.tables import table
from tests.capability.graphs import graph

SWIGLU = 'activation_type="swiglu", swiglu_fusion=1, normalize_routing_weights=1, k=2'
PACKED = f"{SWIGLU}, expert_weight_bits=4, weights_prepacked=0"
BANK = "{kind}[T, 32] x, {kind}[T, 8] l, {kind}[8, 96, 32] a, {kind}[8, 32, 48] b, {kind}[8, 48, 32] c"
QBANK = (
    "{kind}[T, 32] x, {kind}[T, 8] l, uint8[8, 96, 16] a, {kind}[8, 96] sa, uint8[8, 32, 24] b, {kind}[8, 32] sb,"
    " uint8[8, 48] za, uint8[8, 16] zb, float[8] g"
)
MOE = "y = com.microsoft.MoE<{}>(x, l, a, , b)"
QMOE = "y = com.microsoft.QMoE<{}>(x, l, a, sa, , b, sb)"
ZEROS = "y = com.microsoft.QMoE<{}>(x, l, a, sa, , b, sb, , , , , za, zb)"
GLOBAL = "y = com.microsoft.QMoE<{}>(x, l, a, sa, , b, sb, , , , , , , , , g, g)"


def mixture(text: str, attributes: str, kind: str = "float", bank: str = "") -> ir.Model:
    bank = bank or (QBANK if "QMoE" in text else BANK)
    return graph(text.format(attributes), bank.format(kind=kind), f"{kind}[T, 32] y")


def blocked(model: ir.Model, device: str, gpu: str = "") -> list[Gap]:
    return [gap for gap in graph_gaps(model, device, gpu) if gap.blocks]


THIRD = ("y = com.microsoft.MoE<{}>(x, l, a, , b, , c)", 'activation_type="silu", normalize_routing_weights=1')
QTHIRD = ("y = com.microsoft.QMoE<{}>(x, l, a, sa, , b, sb, , a, sa)", PACKED)
MIXER = f"{SWIGLU}, use_sparse_mixer=1"
UNSAID = f"{SWIGLU}, expert_weight_bits=4"
NVFP4, FP8 = (f'{PACKED}, quant_type="{kind}"' for kind in ("nvfp4", "fp8"))
TWO, THREE, EIGHT = (PACKED.replace("bits=4", f"bits={bits}") for bits in (2, 3, 8))
SIX = BANK.replace("[T, 8]", "[T, 6]").replace("[8,", "[6,")
ODD = BANK.replace("48", "44").replace("96", "88")
TINY = BANK.replace("48", "8").replace("96", "16")
HALF = "float16"


def summed(attributes: str) -> str:
    return attributes.replace("weights=1", "weights=0")


Planted = tuple[str, tuple[str, ...], tuple[str, ...], str]
PLANTED: dict[str, Planted] = {
    "fc3 on the CPU": ("cpu", THIRD, (MOE, THIRD[1]), "fc3 is given"),
    "fc3 of QMoE on the CPU": ("cpu", QTHIRD, (QMOE, PACKED), "fc3 is given"),
    "fc3 of QMoE on CUDA": ("cuda", (*QTHIRD, HALF), (QMOE, PACKED, HALF), "block-scaled fp8"),
    "halves apart": ("cpu", (MOE, SWIGLU.replace("fusion=1", "fusion=2")), (MOE, SWIGLU), "swiglu_fusion 2"),
    "sparse mixer": ("cpu", (MOE, MIXER), (MOE, SWIGLU), "use_sparse_mixer is silently ignored"),
    "sparse mixer of 6": ("cuda", (MOE, MIXER, HALF, SIX), (MOE, MIXER, HALF), "8 or 16 experts"),
    "sum left in": ("cpu", (MOE, summed(SWIGLU)), (MOE, SWIGLU), "onnxruntime#33866"),
    "sum left in QMoE": ("cpu", (QMOE, summed(PACKED)), (QMOE, PACKED), "normalize_routing_weights=0"),
    "half MoE": ("cpu", (MOE, SWIGLU, HALF), (MOE, SWIGLU), "FLOAT16 data, and MoE of the CPU provider takes FLOAT"),
    "bfloat16 QMoE": ("cpu", (QMOE, PACKED, "bfloat16"), (QMOE, PACKED, HALF), "BFLOAT16 data"),
    "float QMoE on CUDA": ("cuda", (QMOE, PACKED), (QMOE, PACKED, "bfloat16"), "FLOAT data, and QMoE of the CUDA provider"),
    "unprepacked default": ("cpu", (QMOE, UNSAID), (QMOE, PACKED), "weights_prepacked is -1"),
    "unprepacked default on CUDA": ("cuda", (QMOE, UNSAID, HALF), (QMOE, PACKED, HALF), "weights_prepacked is -1"),
    "nvfp4 on the CPU": ("cpu", (QMOE, NVFP4), (QMOE, PACKED), "quant_type nvfp4 is silently ignored"),
    "fp8 on CUDA": ("cuda", (QMOE, FP8, HALF), (QMOE, PACKED, HALF), "USE_FP8_QMOE"),
    "nvfp4 without its scale": ("cuda", (QMOE, NVFP4, HALF), (GLOBAL, NVFP4, HALF), "without both global scales"),
    "nvfp4 in other blocks": (
        "cuda", (GLOBAL, f"{NVFP4}, block_size=32", HALF), (GLOBAL, f"{NVFP4}, block_size=16", HALF), "they are of 16"),
    "3 bits": ("cpu", (QMOE, THREE), (QMOE, EIGHT), "there are 2, 4 and 8"),
    "zero points for each row": ("cuda", (ZEROS, PACKED, HALF), (ZEROS, f"{PACKED}, block_size=32", HALF), "zero points"),
    "2 bits without blocks": ("cuda", (QMOE, TWO, HALF), (QMOE, f"{TWO}, block_size=16", HALF), "2 bits in blocks of 0"),
    "blocks that divide nothing": (
        "cuda", (QMOE, f"{TWO}, block_size=32", HALF), (QMOE, f"{TWO}, block_size=16", HALF), "do not divide H=32 and F=48"),
    "an odd width": ("cuda", (MOE, SWIGLU, HALF, ODD), (MOE, SWIGLU, "float", ODD), "F is 44, and must be a multiple of 8"),
    "a tiny width": ("cuda", (MOE, SWIGLU, HALF, TINY), (MOE, SWIGLU, HALF), "F is 8, and must be"),
    "more chosen than there are": (
        "cuda", (MOE, SWIGLU.replace("k=2", "k=9"), HALF), (MOE, SWIGLU.replace("k=2", "k=8"), HALF), "k is 9, of 8"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_named(name):
    device, planted, _, reason = PLANTED[name]
    (gap,) = blocked(mixture(*planted), device)
    assert gap.where.startswith("y (") and reason in gap.why


@pytest.mark.parametrize("name", PLANTED)
def test_its_twin_is_taken(name):
    device, _, twin, _ = PLANTED[name]
    assert blocked(mixture(*twin), device) == []


@pytest.mark.parametrize(
    ("gpu", "taken"), [("sm_75", True), ("sm_90", True), ("sm_100", False), ("sm_120", True), ("sm_42", False)]
)
def test_the_wheel(gpu, taken):
    gaps = blocked(graph("y = Relu(x)"), "cuda", gpu)
    assert (gaps == []) == taken and all(gap.where == gpu for gap in gaps)
    assert blocked(graph("y = Relu(x)"), "cpu", gpu) == []


@pytest.mark.parametrize(("fields", "reason"), [({"opset": 27}, "opset 27"), ({"ir_version": 14}, "IR version 14")])
def test_formats_that_it_does_not_read(fields, reason):
    (gap,) = blocked(graph("y = Relu(x)", **fields), "cpu")
    assert reason in gap.why
    assert blocked(graph("y = Relu(x)", opset=26, ir_version=13), "cpu") == []


@pytest.mark.parametrize(("body", "kind", "reason"), [
    ("y = BitwiseAnd(x, x)", "int32", "no CUDA kernel of BitwiseAnd is known"),
    ("y = Cos(x)", "bfloat16", "BFLOAT16 data, and Cos of the CUDA provider takes"),
])  # fmt: skip
def test_copies_between_devices_are_told(body, kind, reason):
    model = graph(body, f"{kind}[T, 8] x", f"{kind}[T, 8] y")
    (gap,) = graph_gaps(model, "cuda", "sm_90")
    assert not gap.blocks and reason in gap.why and "copies" in gap.instead
    assert graph_gaps(model, "cpu") == []


@pytest.mark.parametrize("body", ["y = Swish(x)", "c = Constant<value_float=1.0>() y = Add(x, c)", "y = Cos(x)"])
def test_what_needs_no_kernel_or_has_one_is_not_told(body):
    assert graph_gaps(graph(body), "cuda", "sm_90") == []


def test_a_domain_of_nobody():
    (gap,) = blocked(graph("y = mocomp.Unheard(x)"), "cpu")
    assert "no operators of mocomp" in gap.why


def test_larger_mixtures_than_the_router_kernels_know():
    bank = BANK.replace("[8,", "[2048,").replace("[T, 8]", "[T, 2048]")
    (gap,) = graph_gaps(mixture(MOE, SWIGLU, "float16", bank), "cuda")
    assert not gap.blocks and "2048 experts" in gap.why


def test_the_types_of_the_cpu_are_those_of_the_wheel():
    """The table against what this wheel registers."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found: dict[str, set[str]] = {}
    for kernel in state.get_all_opkernel_def():
        if kernel.domain == "com.microsoft" and kernel.provider == "CPUExecutionProvider":
            found.setdefault(kernel.op_name, set()).update(
                kernel.type_constraints.get("T", kernel.type_constraints.get("T1", []))
            )
    words = {"FLOAT": "tensor(float)", "FLOAT16": "tensor(float16)"}
    assert table("onnxruntime")["version"] == onnxruntime.__version__
    for operator, types in CPU["com.microsoft"].items():
        assert {words[kind] for kind in types} == found[operator], operator


def test_fc3_is_really_refused():
    """The runtime's own answer to the first planted violation."""
    model = ir.to_proto(mixture(*THIRD))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = {value.name: [d.dim_value or 3 for d in value.type.tensor_type.shape.dim] for value in model.graph.input}
    with pytest.raises(Exception, match="FC3"):
        session.run(None, {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_operators_that_nobody_has(device):
    """A name in the standard's domain is known or is none; of ONNX Runtime's own, not all are in the tables."""
    (gap,) = graph_gaps(graph("y = Foo(x)"), device)
    assert gap.blocks and "has a Foo" in gap.why
    (gap,) = graph_gaps(graph("y = com.microsoft.Foo(x)"), device)
    assert not gap.blocks and "nothing is known of com.microsoft.Foo" in gap.why
    assert not any(gap.blocks for gap in graph_gaps(graph("y = SimplifiedLayerNormalization(x, x)"), device))


def test_the_names_beside_the_standard_are_those_of_the_wheel():
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    found = {schema.name for schema in get_all_operator_schema() if schema.domain == "" and not onnx.defs.has(schema.name)}
    assert set(TABLE["besides"]) == {name for name in found if not name.endswith("_TRT")}
