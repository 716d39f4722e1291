"""Choosing ways by their times, and proving what was chosen: both sides of every limit."""

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from mocomp import tuning
from mocomp.commands.parity import parity
from mocomp.lowering.branches import Turn
from mocomp.lowering.onnx_session import load, replace
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import NAME, artifact_from, read
from mocomp.verify.latency import Latency
from mocomp.weights.record import seal

BEYOND = 300
"""More tokens than any case of parity has."""


def latency(median: float) -> Latency:
    return Latency(median, 0.9 * median, 1.1 * median, 9)


@pytest.mark.parametrize(
    ("best", "turns"),
    [
        (["fused", "fused", "fused"], [("fused", 0)]),
        (["fused", "sorted", "sorted"], [("fused", 4), ("sorted", 0)]),
        (["gathered", "fused", "sorted"], [("gathered", 4), ("fused", 45), ("sorted", 0)]),
    ],
)
def test_limits_lie_between_the_counts(best, turns):
    assert tuning.turns_of([1, 16, 128], best) == tuple(Turn(*turn) for turn in turns)


ONE_WAY = [((0.5, 0.7), "b"), ((0.5, 1.02), "b"), ((0.5, 1.2), "fused"), ((1, 1), "fused")]
"""(times of way b over the default's, who wins)."""


@pytest.mark.parametrize(("times", "winner"), ONE_WAY)
def test_quantised_experts_have_one_way_that_is_nowhere_worse(times, winner):
    at = {1: times[0], 16: times[1]}
    timings = [tuning.Timing(n, "fused", latency(1.0)) for n in at] + [tuning.Timing(n, "b", latency(at[n])) for n in at]
    assert tuning.single(timings) == (Turn(winner),)


NOISE = (1.0, 3.0, 1.2, 0.9, 2.0, 1.1, 1.0, 5.0)
"""How much slower everything is, turn by turn."""


@pytest.mark.parametrize(
    ("ratios", "winner"),
    [((0.9,) * 8, "sorted"), ((0.9, 1.05) * 4, "fused"), ((0.9, 0.8, 0.7, 1.1) * 2, "sorted"), ((1.1,) * 8, "fused")],
)
def test_the_default_stays_unless_it_is_beaten_by_more_than_the_noise(ratios, winner):
    rounds = {"fused": [[n, n, 9 * n] for n in NOISE], "dense": [[4 * n] for n in NOISE]}
    rounds["sorted"] = [[n * ratio] * 3 for n, ratio in zip(NOISE, ratios, strict=True)]
    assert tuning.winner(rounds) == winner


def test_more_is_timed_where_the_best_way_changes():
    assert tuning.between({1: "fused", 16: "fused", 128: "sorted"}) == [45]
    assert tuning.between({1: "gathered", 2: "fused", 16: "sorted", 31: "dense"}) == [5]


class Slow:
    """A session that takes its time."""

    def __init__(self, seconds: float):
        self.seconds, self.runs = seconds, 0

    def run(self, inputs):
        self.runs += 1
        end = tuning.time.perf_counter() + self.seconds
        while tuning.time.perf_counter() < end:
            pass
        return np.zeros(1)


def test_what_is_hopeless_is_not_timed_and_the_default_always_is():
    sessions = {"fused": Slow(0.02), "sorted": Slow(0.0005), "dense": Slow(0.02)}
    found = tuning.timed(list(sessions), lambda turns: sessions[turns[0].way], {})
    assert list(found) == ["fused", "sorted"] and sessions["dense"].runs == 2
    assert np.median(found["sorted"]) < np.median(found["fused"])
    assert len(found["fused"]) == len(found["sorted"]) >= tuning.ROUNDS and len(found["fused"][0]) == tuning.TOGETHER


@pytest.fixture
def tuned_artifact(checkpoint, tmp_path):
    """tuned_artifact(turns): a small artifact whose mixtures run so."""

    def made(*turns: tuple[str, int], **options) -> Path:
        directory = tmp_path / "out"
        convert(str(checkpoint("qwen3_moe")), directory, ConvertOptions(parity="off", **options))
        data = read(directory)
        artifact = artifact_from(data)
        chosen = tuple(Turn(*turn) for turn in turns)
        artifact = tuning.rewrite(directory, artifact, {i: chosen for i in range(len(artifact.mixtures))})
        data["artifact"]["mixtures"] = [tuning.dataclasses.asdict(m) for m in artifact.mixtures]
        (directory / NAME).write_text(json.dumps(data))
        seal(directory, NAME)
        return directory

    return made


@pytest.mark.parametrize("turns", [[("fused", BEYOND), ("sorted", 0)], [("gathered", 3), ("sorted", 20), ("dense", 0)]])
def test_an_artifact_of_several_ways_is_proven(tuned_artifact, turns):
    assert parity(tuned_artifact(*turns)).failures == []


def test_quantised_experts_keep_their_weights(tuned_artifact):
    directory = tuned_artifact(("fused", 4), ("float activations", 0), quantize="int4:16", accuracy_level=4)
    operators = open_target("onnxruntime").weights(directory, artifact_from(read(directory)).mixtures[0])
    assert len(list(operators)) == 8
    assert parity(directory).failures == []


def spoil(model: ir.Model) -> None:
    """In the way for many tokens, shares are no longer such of one token."""
    (made,) = model.functions.values()
    (branch,) = [node for node in made if node.op_type == "If"]
    (share,) = [node for node in branch.attributes["else_branch"].as_graph() if node.op_type == "Softmax"]
    share.attributes["axis"] = ir.AttrInt64("axis", 0)


def test_a_fault_beyond_all_cases_of_parity_is_caught(tuned_artifact):
    directory = tuned_artifact(("fused", BEYOND), ("sorted", 0))
    model = load(directory)
    spoil(model)
    replace(model, directory)
    failures = parity(directory).failures
    assert failures and all("experts off by" in failure for failure in failures)


def test_convert_tunes_and_reports(command, checkpoint, tmp_path):
    done = command("convert", checkpoint("qwen3_moe"), "-o", tmp_path / "out", "--tune", "64,1")
    assert done.code == 0 and "tuned 8 experts of" in done.out
    (layer,) = read(tmp_path / "out")["tuning"]["layers"]
    assert {timing["tokens"] for timing in layer["timings"]} >= {1, 64} and len(layer["layers"]) == 2
    assert {timing["tokens"] for timing in layer["timings"] if timing["way"] == "fused"} >= {1, 64}
    assert layer["chosen"][-1]["tokens"] == 0


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("qwen3_moe", ["--tune", "1,many"], "no list of numbers of tokens"),
        ("qwen3_moe", ["--tune", "0"], "no list of numbers of tokens"),
        ("qwen3_moe", ["--tune", "1", "--target", "onnx"], "one way to run a mixture"),
        ("qwen3_moe", ["--tune", "1", "--device", "cuda", "--emulate"], "target onnxruntime on cuda, which has one way"),
        ("llama", ["--tune", "1"], "nothing to tune"),
    ],
)
def test_what_cannot_be_tuned_is_refused(command, checkpoint, tmp_path, family, options, words):
    done = command("convert", checkpoint(family), "-o", tmp_path / "out", *options)
    assert done.code == 2 and words in done.err and not (tmp_path / "out").exists()
