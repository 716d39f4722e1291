"""mocomp convert --expert-parallel and mocomp parity --ranks, as a user has them."""

import json

import numpy as np
import pytest

from mocomp.lowering.ranks_files import EXPERTS
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.placement import measured, proof
from mocomp.verify import memory


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """(the digits model with text and image experts, its usage on its own data)."""
    from mocomp.commands.usage import UsageOptions, usage

    file = tmp_path_factory.mktemp("digits") / "usage.json"
    usage("examples/digits/moma", UsageOptions(data="examples/digits/calibration.jsonl"), file)
    return "examples/digits/moma", file


def test_ranks_are_placed_by_usage_and_proven(command, digits, tmp_path):
    source, usage = digits
    out = tmp_path / "out"
    done = command("convert", source, "-o", out, "--expert-parallel", 2, "--usage", usage)
    assert done.code == 0, done.err
    for words in ("2 ranks, experts placed integer programme", "less than round-robin", "together they are the single model"):
        assert words in done.out
    found = json.loads((out / "mocomp.json").read_text())["expert_parallel"]
    # of text and of images each on a rank of their own: nothing has to cross
    assert found["predicted"]["placed"]["crossing"] == 0 < found["predicted"]["round_robin"]["crossing"]
    assert sorted(map(sorted, found["share"].values())) == [[0, 1], [0, 1]]
    assert found["proof"]["crossed"] == 0 < found["proof"]["steps"]
    assert found["proof"]["compared"] and found["proof"]["difference"] < 1e-5
    assert {path.name for path in out.iterdir()} >= {"model.onnx", "model.onnx.data", "rank_0", "rank_1"}

    again = command("parity", out, "--ranks", "--json")
    assert again.code == 0 and json.loads(again.out)["passed"]

    broken = out / "rank_1" / EXPERTS
    data = np.fromfile(broken, np.float32)
    data[: len(data) // 2] *= 1.01
    data.tofile(broken)
    assert command("parity", out).code == 0  # the single model is as it was
    failed = command("parity", out, "--ranks")
    assert failed.code == 1 and "ranks:" in failed.out


def test_ranks_that_fail_are_not_kept(command, checkpoint, tmp_path, monkeypatch):
    class Lossy(proof.Ranks):
        def run(self, inputs):
            values = super().run(inputs)
            return values | {"logits": values["logits"] * 1.01}

    monkeypatch.setattr(proof, "Ranks", Lossy)
    done = command("convert", checkpoint("mixtral"), "-o", tmp_path / "out", "--expert-parallel", 2)
    assert done.code == 1 and "differ from the single model" in done.err and not (tmp_path / "out").exists()


def test_without_usage_it_is_round_robin_and_says_so(command, checkpoint, tmp_path):
    out = tmp_path / "out"
    asked = ("--expert-parallel", 2, "--parity", "off", "--target", "onnx")
    done = command("convert", checkpoint("mixtral"), "-o", out, *asked)
    assert done.code == 0 and "they were placed round-robin" in done.out
    found = json.loads((out / "mocomp.json").read_text())["expert_parallel"]
    assert found["experts"][0] == [[0, 2, 4, 6], [1, 3, 5, 7]] and found["proof"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--expert-parallel", 1], 2, "2 ranks or more"),
        (["--expert-parallel", 2, "--weights", "none"], 2, "weights to share out"),
        (["--expert-parallel", 2, "--link-weights"], 2, "--link-weights"),
        (["--expert-parallel", 9], 3, "it has 8 experts"),
        (["--expert-parallel", 2, "--target", "huggingface"], 3, "it has no graphs of ranks"),
        (["--expert-parallel", 2, "--device", "cuda", "--emulate"], 3, "it has no graphs of ranks"),
        (["--expert-parallel", 2, "--usage", "none.json"], 5, "no such file"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(command, checkpoint, tmp_path, arguments, code, message):
    done = command("convert", checkpoint("mixtral"), "-o", tmp_path / "out", *arguments)
    assert done.code == code and message in done.err and "Traceback" not in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_dense_model_is_refused(command, checkpoint, tmp_path):
    done = command("convert", checkpoint("llama"), "-o", tmp_path / "out", "--expert-parallel", 2)
    assert done.code == 3 and "no mixture of experts" in done.err and not (tmp_path / "out").exists()


def test_usage_of_another_model_is_refused(command, checkpoint, digits, tmp_path):
    done = command("convert", checkpoint("mixtral"), "-o", tmp_path / "out", "--expert-parallel", 2, "--usage", digits[1])
    assert done.code == 5 and "of another model" in done.err and not (tmp_path / "out").exists()


def test_an_artifact_without_ranks_is_told(command, converted):
    done = command("parity", converted("mixtral").directory, "--ranks")
    assert done.code == 5 and "no rank.json" in done.err


@pytest.fixture(scope="module")
def ranks(checkpoint, tmp_path_factory):
    """An artifact with ranks, quantised."""
    out = tmp_path_factory.mktemp("ranks") / "out"
    convert(str(checkpoint("mixtral")), out, ConvertOptions(expert_parallel=2, parity="off", quantize="int8"))
    return out


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (["--memory", "1GB"], "memory"),
        (["--workers", 1], "workers"),
        (["--executor", "ray"], "executor"),
        (["--executor", "ray", "--address", "here:1"], "executor"),
    ],
)
def test_ranks_have_no_use_for_resources(command, ranks, given, name):
    done = command("parity", ranks, "--ranks", *given)
    assert done.code == 2 and f"--ranks with --{name}" in done.err


def test_ranks_of_what_does_not_fit_are_not_loaded(command, ranks, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**5)
    done = command("parity", ranks, "--ranks")
    assert done.code == 3 and "the proof takes" in done.err


def test_ranks_are_held_against_another_model(command, ranks, checkpoint):
    """One with the same experts, and one that has none."""
    assert command("parity", ranks, "--ranks", "--reference", checkpoint("mixtral")).code == 0
    done = command("parity", ranks, "--ranks", "--reference", checkpoint("llama"))
    assert done.code in (1, 5) and "Traceback" not in done.err + done.out


def test_what_measures_usage_keeps_to_the_memory(command, checkpoint, tmp_path, monkeypatch):
    given, before = [], measured.loaded
    monkeypatch.setattr(measured, "loaded", lambda *all_of_them: given.append(all_of_them[3]) or before(*all_of_them))
    (tmp_path / "data.jsonl").write_text('{"input_ids": [1, 2, 3, 4]}\n')
    asked = ("--expert-parallel", 2, "--calibration", tmp_path / "data.jsonl", "--memory", "3MB", "--parity", "off")
    done = command("convert", checkpoint("mixtral"), "-o", tmp_path / "out", *asked)
    assert done.code == 0, done.err
    assert given == [3_000_000]
