"""`mocomp parity` as a user sees it: looking for a culprit, inputs of the user's own, any two models side by side."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report.results import BISECT, load

ROOT = Path(__file__).parents[1]
DIGITS = ROOT / "examples" / "digits" / "checkpoint"


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """An artifact of the model of the example, which has a tokenizer."""
    directory = tmp_path_factory.mktemp("digits") / "artifact"
    convert(str(DIGITS), directory, ConvertOptions(parity="off"))
    return directory


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    """The same with all matrices in few bits."""
    directory = tmp_path_factory.mktemp("packed") / "artifact"
    convert(str(DIGITS), directory, ConvertOptions(parity="off", quantize="int4:32", quantize_dense="int8"))
    return directory


@pytest.fixture
def artifact(digits, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(digits, tmp_path / "artifact"))


def damage(directory: Path, weight: str) -> None:
    """Exchange the first two experts of a weight, as it lies on disk."""
    value = ir.load(directory / "model.onnx").graph.initializers[weight].const_value
    changed = value.numpy().copy()
    changed[[0, 1]] = changed[[1, 0]]
    with (directory / "model.onnx.data").open("r+b") as file:
        file.seek(value.offset)
        file.write(changed.tobytes())


def test_a_right_artifact_has_no_culprit(command, artifact):
    done = command("parity", artifact, "--bisect")
    assert done.code == 0 and "nothing leaves the tolerance: largest error" in done.out
    assert "bisect: running the artifact" in done.err and "generated cases, seed 0" in done.out
    kept = load(artifact, BISECT)
    assert kept["passed"] and kept["first_pass"] is None and kept["first_layer"] is None
    assert kept["passes"][0]["name"] == "trace" and len(kept["passes"]) > 10
    assert [layer["layer"] for layer in kept["artifact"]["layers"]][1:] == [*(f"model.layers.{i}" for i in range(3)), "outputs"]


def test_a_damaged_artifact_is_the_culprit_and_its_layer(command, artifact):
    damage(artifact, "model.layers.1.mlp.experts.down_proj")
    done = command("parity", artifact, "--bisect", "--text", "an image of the number three", "--json")
    found = json.loads(done.out)
    assert done.code == 1 and not found["passed"] and found == load(artifact, BISECT)
    assert (found["first_pass"], found["first_layer"]) == ("artifact", "model.layers.1")
    assert "its experts alone" in found["words"] and found["inputs"] == "text of the command line"
    assert all(stage["error"] < 1e-5 for stage in found["passes"]) and found["artifact"]["error"] > found["tolerance"]


def test_packed_weights_are_bisected_too(command, packed):
    done = command("parity", packed, "--bisect", "--text", "the number one", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and {"quantize_weights", "fuse_quantized"} <= {stage["name"] for stage in found["passes"]}
    assert 0.0 < found["artifact"]["error"] < 1e-4 and "rounded anew" in found["notes"][0]


def test_inputs_of_the_user(command, digits, tmp_path):
    np.savez(tmp_path / "own.npz", input_ids=np.arange(3, 27).reshape(2, 12))
    done = command("parity", digits, "--inputs", tmp_path / "own.npz", "--text", "the number one", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found["passed"]
    names = ["row 1 of own.npz", "row 2 of own.npz", "text 1", "row 1 of own.npz, in two calls"]
    assert [case["name"] for case in found["cases"]] == names


def test_inputs_of_the_user_find_damage(command, artifact):
    damage(artifact, "model.layers.1.mlp.experts.down_proj")
    done = command("parity", artifact, "--text", "an image of the number three")
    assert done.code == 1 and "parity failed" in done.out and "text 1" in done.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--inputs", "nowhere.jsonl"], "nowhere.jsonl: not readable"),
        (["--inputs", "nowhere.npz"], "nowhere.npz: not readable"),
        (["--text", ""], "--text 1: "),
    ],
)
def test_inputs_that_are_none(command, digits, arguments, words):
    done = command("parity", digits, *arguments)
    assert done.code == 5 and words in done.err and "Traceback" not in done.err


def test_text_without_a_tokenizer(command, converted):
    done = command("parity", converted("qwen3_moe").directory, "--text", "hello")
    assert done.code == 5 and "--text 1: text needs a tokenizer, and " in done.err


def test_artifact_and_packed_artifact(command, digits, packed):
    done = command("parity", digits, packed, "--json")
    found = json.loads(done.out)
    assert done.code == 1 and 1e-2 < found["worst"] < 1.0 and 0.9 < found["agreement"] < 1.0
    assert found["notes"] == [f"{digits} holds floats; {packed} holds 6 weights in int4:32, 13 weights in int8:32"]
    assert all(case["kl"] > 0.0 for case in found["cases"])


def test_source_and_artifact_either_way_round(command, digits):
    for pair in ((DIGITS, digits), (digits, DIGITS)):
        done = command("parity", *pair, "--text", "the number one")
        assert done.code == 0 and "parity passed" in done.out and "same experts chosen for 100.00%" in done.out


def test_two_sources(command, checkpoint):
    same = command("parity", checkpoint("qwen3_moe"), checkpoint("qwen3_moe"))
    assert same.code == 0 and "differ by 0.0e+00" in same.out
    other = command("parity", checkpoint("qwen3_moe"), checkpoint("mixtral"))
    assert other.code == 1 and "failed: " in other.out


def test_two_that_have_nothing_in_common(command, digits, checkpoint):
    done = command("parity", digits, checkpoint("bert"))
    assert done.code == 5 and "Traceback" not in done.err


@pytest.mark.parametrize("more", [["--bisect"], ["--reference", DIGITS]], ids=["bisect", "reference"])
def test_what_is_said_of_one_artifact_is_not_said_of_two(command, digits, more):
    done = command("parity", digits, DIGITS, *more)
    assert done.code == 2 and "Leave" in done.err


def test_bisect_of_what_is_no_artifact(command, tmp_path):
    done = command("parity", tmp_path, "--bisect")
    assert done.code == 5 and "no mocomp.json" in done.err


def test_a_model_with_mixtures_inserted_is_followed_from_there_on(command, tmp_path):
    convert(str(ROOT / "examples" / "digits" / "moma"), tmp_path / "artifact", ConvertOptions(parity="off"))
    done = command("parity", tmp_path / "artifact", "--bisect", "--text", "the number one", "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found["passes"][0]["name"] == "insert_experts"
    layers = [layer["layer"] for layer in found["artifact"]["layers"] if layer["error"] > 0.0]
    assert layers == [*(f"model.layers.{i}" for i in range(3)), "outputs"] and len(found["notes"]) == 1
