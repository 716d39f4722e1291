"""The target on a machine without TensorRT: graphs that its parser takes, proven in ONNX Runtime on the CPU."""

import json

import numpy as np
import onnx_ir as ir
import pytest

from mocomp.capability.tensorrt import graph_gaps
from mocomp.commands.parity import parity as prove_again
from mocomp.deployment import Deployment
from mocomp.errors import ParityFailed, Unsupported, Usage
from mocomp.lowering import tensorrt_moe
from mocomp.lowering.profiles import dims_of
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from tests.tensorrt.conftest import DIGITS

FAMILIES = ("qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "bert")
RELEASES = ("10.15", "11.4")


def graph(made, name: str = "model.onnx") -> ir.Model:
    return ir.load(made.directory / name)


def operators(model: ir.Model) -> set[str]:
    return {node.op_type for node in model.graph.all_nodes()}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_proven_and_clean_for_the_parser(emulated, family):
    made = emulated(family)
    assert made.report.parity.passed and made.report.parity.agreement == 1.0
    for release in RELEASES:
        assert [gap for gap in graph_gaps(graph(made), release) if gap.blocks] == []
    if family != "bert":
        assert len(made.report.parity.layers) > 0, "the choice of experts was looked at"
    assert prove_again(made.directory).passed


FORMATS = {
    "int8": ({}, "INT8"),
    "int4": ({"group_size": 32}, "INT4"),
    "fp8": ({}, "FLOAT8E4M3FN"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_weights_in_few_bits_are_explicit(emulated, form):
    options, kind = FORMATS[form]
    made = emulated("digits", quantize=form, **options)
    model = graph(made)
    types = {node.inputs[0].dtype.name for node in model.graph if node.op_type == "DequantizeLinear"}
    assert types == {kind} and made.report.parity.passed
    for release in RELEASES:
        assert [gap for gap in graph_gaps(model, release) if gap.blocks] == []


@pytest.mark.parametrize("dtype,kind", [("float16", "FLOAT16"), ("bfloat16", "BFLOAT16")])
def test_types_are_those_of_the_graph(emulated, dtype, kind):
    made = emulated("digits", dtype=dtype)
    model = graph(made)
    assert {value.dtype.name for value in model.graph.inputs if value.name.startswith("past")} == {kind}
    assert (
        made.report.parity.passed and made.report.artifact.weight_bytes < 0.6 * emulated("digits").report.artifact.weight_bytes
    )
    assert [gap for gap in graph_gaps(model, "11.4", "sm_90") if gap.blocks] == []


# --- TensorRT's own layer --------------------------------------------------------------------------------------------


def test_blackwell_has_a_layer_for_mixtures(emulated):
    made = emulated("digits", gpu="sm_100")
    model = graph(made)
    nodes = [node for node in model.graph if node.op_type == "TRT_MoE"]
    assert len(nodes) == 3 and made.report.parity.passed and len(made.report.parity.layers) == 3
    for node in nodes:
        assert [value.dtype.name for value in node.inputs[:3]] == ["FLOAT", "INT32", "FLOAT"]
        gate, up, down = ([*value.shape] for value in node.inputs[3:6])
        assert gate == up == [8, 64, 64] or gate == up
        assert down == [gate[0], gate[2], gate[1]] and node.attributes["activation_type"].as_int() == 1
    assert [gap for gap in graph_gaps(model, "11.4", "sm_100") if gap.blocks] == []
    assert any("TRT_MoE" in str(gap) for gap in graph_gaps(model, "10.15", "sm_100") if gap.blocks), "it came with 11.0"
    assert not any("Experts" in name for _, name, _ in model.functions), "nothing is left of what it replaces"


def test_the_layer_in_16_bits(emulated):
    made = emulated("digits", gpu="sm_103", dtype="bfloat16", engines="two")
    for name in ("model.onnx", "decode.onnx"):
        node = next(node for node in graph(made, name).graph if node.op_type == "TRT_MoE")
        assert {node.inputs[i].dtype.name for i in (0, 2, 3, 4, 5)} == {"BFLOAT16"}
    assert made.report.parity.passed


@pytest.mark.parametrize("fault", ["halves", "down"])
def test_a_wrong_layout_of_the_layer_is_found(tmp_path, monkeypatch, fault):
    own = tensorrt_moe._halves
    if fault == "halves":
        monkeypatch.setattr(tensorrt_moe, "_halves", lambda *given: own(*given)[::-1])
    else:
        monkeypatch.setattr(tensorrt_moe, "permute", lambda recipe, order: tensorrt_moe_reshaped(recipe))
    with pytest.raises(ParityFailed):
        convert(str(DIGITS), tmp_path / "made", ConvertOptions(target="tensorrt", emulate=True, gpu="sm_100"))


def tensorrt_moe_reshaped(recipe):
    """The shape of a transposed weight, and the numbers as they lay."""
    from mocomp.weights.recipes import reshape

    experts, rows, columns = recipe.shape
    return reshape(recipe, (experts, columns, rows))


REASONS = {
    ("gpt_oss", "sm_100"): "SwiGLU without parameters",
    ("qwen3_moe", "sm_90"): "IMoELayer runs on sm_100, sm_103, sm_110, not on sm_90",
    ("qwen3_moe", ""): "no --gpu is named",
}


@pytest.mark.parametrize("family,gpu", REASONS)
def test_what_is_used_instead_is_said(emulated, family, gpu):
    notes = "\n".join(emulated(family, gpu=gpu).report.notes)
    assert REASONS[family, gpu] in notes and "all experts are computed" in notes


def test_packed_weights_are_not_for_the_layer(emulated):
    made = emulated("digits", quantize="int8", gpu="sm_100")
    assert "TRT_MoE" not in operators(graph(made)) and "quantised activations" in "\n".join(made.report.notes)


# --- profiles and bodies ---------------------------------------------------------------------------------------------


def test_the_body_is_that_of_the_profiles(emulated):
    """One token of digits has 2 of 8 experts; four of them read no fewer weights than all experts have."""
    two = emulated("digits", engines="two")
    bodies = {name: body_of(graph(two, name)) for name in ("model.onnx", "decode.onnx")}
    assert bodies == {"model.onnx": "dense", "decode.onnx": "gathered"}
    assert two.report.artifact.weight_bytes == emulated("digits").report.artifact.weight_bytes, "one file of weights"
    few = emulated("digits", profiles=("few:sequence=1..4,past=0..60",))
    more = emulated("digits", profiles=("more:sequence=1..5,past=0..59",))
    assert (body_of(graph(few)), body_of(graph(more))) == ("gathered", "dense")
    assert body_of(graph(emulated("digits", mixture="gathered"))) == "gathered"


def body_of(model: ir.Model) -> str:
    function = next(function for (_, name, _), function in model.functions.items() if name == "Experts")
    return "gathered" if any(node.op_type == "Gather" for node in function) else "dense"


def test_the_graph_says_what_it_is_for(emulated):
    made = emulated("digits", engines="two")
    assert graph(made, "decode.onnx").metadata_props["mocomp.profiles"] == "decode:batch=1,sequence=1,past=0..31..63"
    dims = dims_of(graph(made).graph.inputs)
    assert dims["attention_mask"] == ["batch", "total"]


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options,words",
    [
        ({"mixture": "sorted"}, "loops over tokens"),
        ({"accuracy_level": 4}, "--accuracy-level"),
        ({"engines": "two", "profiles": ("a:sequence=1",)}, "engines two"),
        ({"profiles": ("a:sequence=100",)}, "more than the 64 positions"),
    ],
)
def test_options_that_it_cannot_have_are_refused(tmp_path, options, words):
    with pytest.raises(Usage, match=words):
        convert(str(DIGITS), tmp_path / "made", ConvertOptions(target="tensorrt", emulate=True, **options))
    assert list(tmp_path.iterdir()) == []


def test_formats_that_tensorrt_has_not_are_refused(tmp_path):
    for form, words in (("mxfp4", "are nvfp4"), ("int2", "INT2|int2"), ("int4:asym", "zero point")):
        with pytest.raises(Unsupported, match=words):
            convert(str(DIGITS), tmp_path / "made", ConvertOptions(target="tensorrt", emulate=True, quantize=form))


def test_nvfp4_is_written_and_not_proven_here(tmp_path):
    with pytest.raises(Unsupported, match="nothing would prove it"):
        convert(str(DIGITS), tmp_path / "made", ConvertOptions(target="tensorrt", emulate=True, quantize="nvfp4"))


def test_the_command_line(command, tmp_path):
    made = command("convert", DIGITS, "-o", tmp_path / "a", "--target", "tensorrt", "--emulate", "--gpu", "sm_90", "--json")
    report = json.loads(made.out)
    assert made.code == 0 and report["target"] == {
        "target": "tensorrt", "tensorrt": "11.4", "gpu": "sm_90", "dtype": "float32", "proven": "emulated"
    }  # fmt: skip
    built = command("build", tmp_path / "a")
    assert built.code == 4 and "--emulate" in built.err and "Traceback" not in built.err
    assert command("build", tmp_path / "nothing").code == 5
    assert np.isfinite(report["parity"]["worst"])
    assert Deployment.of(report["options"]).emulate is True
