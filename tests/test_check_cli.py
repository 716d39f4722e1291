"""`mocomp check` as a shell sees it: of a source, of an artifact, of any graph, and of what is none of these."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mocomp.capability.standard import graph_gaps
from tests import checkpoints
from tests.capability.graphs import function, graph
from tests.test_architecture import modules_after

COUNTS = {"inputs": "int64[T] x", "outputs": "int64[T] y"}


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A source of which there is a config and nothing else."""
    directory = tmp_path_factory.mktemp("config")
    checkpoints.config("mixtral", num_hidden_layers=1, intermediate_size=64).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def summing(tmp_path_factory) -> Path:
    """A graph that sums up integers."""
    path = tmp_path_factory.mktemp("graph") / "summing.onnx"
    ir.save(graph("a = Constant<value = int64 {0}>() y = CumSum(x, a)", **COUNTS), path)
    return path


def test_nothing_blocks(command, config, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    done = command("check", config, "--quantize", "int8")
    assert done.code == 0 and done.out.startswith(f"target onnxruntime on cpu takes {config}"), done.err
    assert [path.name for path in config.iterdir()] == ["config.json"] and not list(tmp_path.glob("mocomp-*"))


def test_what_blocks_is_a_table_and_an_exit_code(command, config):
    done = command("check", config, "--device", "cuda", "--gpu", "sm_90", "--dtype", "float16", "--quantize", "int4:row:asym")
    verdict, header, first, *_ = done.out.splitlines()
    assert done.code == 3 and "does not take" in verdict and header.split() == ["where", "why", "instead"]
    assert first.startswith("blocks  model.layers.0.mlp.experts") and "zero points" in first


def test_what_blocks_comes_first(command, config):
    arguments = ("--target", "tensorrt", "--gpu", "sm_80", "--dtype", "float16", "--quantize", "fp8", "--json")
    done = command("check", config, *arguments)
    blocks = [gap["blocks"] for gap in json.loads(done.out)["gaps"]]
    assert done.code == 3 and blocks == sorted(blocks, reverse=True) and set(blocks) == {True, False}
    assert not json.loads(done.out)["passed"]


def test_an_artifact_is_checked_as_it_was_made_and_for_others(command, config, tmp_path):
    made = tmp_path / "made"
    assert command("convert", config, "-o", made, "--weights", "none", "--parity", "off").code == 0
    assert command("check", made).out.startswith(f"target onnxruntime on cpu takes {made}")
    for options, reason in (
        (("--target", "tensorrt"), "com.microsoft.MoE is no operator"),
        (("--target", "onnx"), "com.microsoft.MoE is not of the standard"),
        (("--device", "cuda", "--gpu", "sm_100"), "the wheel of"),
    ):
        done = command("check", made, *options, "--json")
        assert done.code == 3 and any(reason in gap["why"] and gap["blocks"] for gap in json.loads(done.out)["gaps"])


@pytest.mark.parametrize(("target", "code"), [("tensorrt", 3), ("onnxruntime", 0), ("onnx", 0)])
def test_any_graph(command, summing, target, code):
    done = command("check", summing, "--target", target, "--json")
    found = json.loads(done.out)
    assert (done.code, found["passed"]) == (code, code == 0)
    assert [gap["where"] for gap in found["gaps"]] == (["y (CumSum)"] if code else [])


@pytest.mark.parametrize(("model", "reason"), [
    (graph("y = com.microsoft.Gelu(x)"), "com.microsoft.Gelu is not of the standard"),
    (graph("y = mocomp.Inside(x)", functions=function("Inside", "y = com.microsoft.Gelu(x)")), "is not of the standard"),
    (graph("y = Swish(x)", opset=23), "no Swish in opset 23"),
])  # fmt: skip
def test_what_the_standard_has_not(model, reason):
    (gap,) = graph_gaps(model)
    assert gap.blocks and reason in gap.why


def test_what_the_standard_has():
    assert graph_gaps(graph("y = mocomp.Inside(x)", functions=function("Inside", "y = Gelu(x)"))) == []
    (gap,) = graph_gaps(graph("y = Relu(x)", opset=20))
    assert not gap.blocks and "opset 20" in gap.why


@pytest.mark.parametrize(("subject", "options", "code", "reason"), [
    ("nothing.onnx", (), 5, "no such file"),
    ("damaged.onnx", (), 5, "no ONNX file"),
    ("empty", (), 5, "no config.json"),
    ("nowhere", (), 5, "no such directory"),
    ("config", ("--target", "abacus"), 2, "no target 'abacus'"),
    ("config", ("--gpu", "H100"), 2, "no compute capability"),
    ("config", ("--quantize", "int5"), 2, "int5"),
    ("config", ("--quantize", "mixed"), 2, "mixed"),
    ("config", ("--dtype", "float16"), 2, "--device cuda"),
    ("summing.onnx", ("--target", "huggingface"), 2, "makes no graph"),
])  # fmt: skip
def test_bad_input_is_told(command, config, summing, tmp_path, subject, options, code, reason):
    (tmp_path / "damaged.onnx").write_bytes(b"not a graph")
    (tmp_path / "empty").mkdir()
    path = {"config": config, "summing.onnx": summing}.get(subject, tmp_path / subject)
    done = command("check", path, *options)
    assert (done.code, done.out) == (code, "") and reason in done.err
    assert "Traceback" not in done.err and "please report" not in done.err


INVALID = {
    "If without branches": (helper.make_node("If", ["c"], ["y"]), "else_branch"),
    "Loop without a body": (helper.make_node("Loop", ["", "c", "x"], ["y"]), "body"),
    "nothing to dequantise": (helper.make_node("DequantizeLinear", [], ["y"]), "input size 0"),
    "a text for a number": (helper.make_node("TopK", ["x", "n"], ["y", "i"], sorted="yes"), "sorted"),
    "an input of nowhere": (helper.make_node("Add", ["x", "nobody"], ["y"]), "nobody"),
    "a cycle": (helper.make_node("Add", ["x", "y"], ["y"]), "y"),
    "an odd MoE": (
        helper.make_node("MoE", ["x", "x", "x", "", "x"], ["y"], domain="com.microsoft", use_sparse_mixer="yes"),
        "sparse_mixer",
    ),
}


@pytest.mark.parametrize(("name", "target"), [
    *((name, "tensorrt") for name in INVALID if "MoE" not in name), ("nothing to dequantise", "onnxruntime"),
    ("an input of nowhere", "onnx"), ("a cycle", "onnxruntime"), ("an odd MoE", "onnxruntime"),
])  # fmt: skip
def test_a_graph_that_is_not_valid(command, tmp_path, name, target):
    """The rules of these targets stumble over it, and it is no fault of ours."""
    node, words = INVALID[name]
    kinds = {"x": TensorProto.FLOAT, "c": TensorProto.BOOL, "n": TensorProto.INT64}
    inputs = [helper.make_tensor_value_info(word, kind, [1]) for word, kind in kinds.items()]
    made = helper.make_graph([node], "g", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])])
    domains = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    (tmp_path / "odd.onnx").write_bytes(helper.make_model(made, opset_imports=domains, ir_version=10).SerializeToString())
    done = command("check", tmp_path / "odd.onnx", "--target", target)
    assert done.code == 5 and "not a valid graph: " in done.err and words in done.err and "Traceback" not in done.err
    assert "please report" not in done.err


def test_a_source_is_checked_for_what_is_here(command, config, monkeypatch):
    """What is printed is what the target took for itself."""
    monkeypatch.setattr("mocomp.targets.tensorrt.tensorrt_release", lambda: "11.1")
    monkeypatch.setattr("mocomp.targets.tensorrt.compute_capability", lambda: "sm_90")
    assert command("check", config, "--target", "tensorrt").out.startswith("target tensorrt on TensorRT 11.1, sm_90 ")
    done = command("check", config, "--target", "tensorrt", "--tensorrt", "11.4", "--gpu", "sm_80")
    assert done.out.startswith("target tensorrt on TensorRT 11.4, sm_80 ")


def test_help_is_light():
    assert modules_after("import mocomp.cli; mocomp.cli.mocomp(['check', '--help'])") == []


def test_an_older_tensorrt_is_told_by_its_release(command, config):
    """IMoELayer, which the GPU has, came with 11.0; what is used instead blocks nothing."""
    done = command("check", config, "--target", "tensorrt", "--tensorrt", "10.15", "--gpu", "sm_100", "--json")
    (gap,) = json.loads(done.out)["gaps"]
    assert done.code == 0 and "came with TensorRT 11.0" in gap["why"] and not gap["blocks"]
