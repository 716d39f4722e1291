"""Usage as a placement reads it: counted over real runs, saved, and refused where it is of another model."""

import json

import numpy as np
import pytest
import torch

from mocomp.calibration.steps import Steps, parsed, spelled
from mocomp.commands.usage import UsageOptions, usage
from mocomp.errors import BadInput
from mocomp.models.huggingface import build, trace
from mocomp.models.source import open_source
from mocomp.placement import measured


def test_steps_are_counted_for_each_pair_of_choices():
    steps = Steps({"a": 3, "b": 4})
    all_of_them = torch.ones(2, 2, dtype=torch.bool)
    for _ in range(2):
        steps.begin()
        steps.add("a", torch.tensor([[0, 1], [1, 2]]), all_of_them)
        steps.add("b", torch.tensor([[3, 0], [3, 3]]), torch.tensor([[True, False], [True, True]]))
    before, found = steps.into("b")
    expected = np.zeros((3, 4))
    expected[0, 3], expected[1, 3], expected[2, 3] = 2, 2 + 4, 4  # twice, and expert 0 was not chosen
    assert before == "a" and found is not None and np.array_equal(found, expected)
    assert steps.into("a") == ("", None)


def test_other_tokens_make_no_step():
    steps = Steps({"a": 2, "b": 2})
    one = torch.ones(1, 1, dtype=torch.bool)
    steps.add("a", torch.tensor([[0]]), one)
    steps.begin()
    steps.add("b", torch.tensor([[0]]), one)
    steps.add("a", torch.tensor([[0], [1]]), one.expand(2, 1))  # not the tokens that b saw
    assert steps.between == {}


def test_steps_are_spelled_without_zeros():
    steps = torch.tensor([[0, 7, 0], [0, 0, 0], [1, 0, 2]])
    assert spelled(steps) == ["1:7", "", "0:1 2:2"]
    assert torch.equal(parsed(spelled(steps), 3), steps)
    for damaged in (["3:1"], ["0:-1"], ["0"], ["a:1"]):
        with pytest.raises(ValueError):
            parsed(damaged, 3)


@pytest.fixture(scope="module")
def used(checkpoint, tmp_path_factory):
    """(a source, the file of its usage)."""
    source, file = checkpoint("mixtral"), tmp_path_factory.mktemp("usage") / "usage.json"
    usage(str(source), UsageOptions(), file)
    return source, file


def layers_of(file):
    layers = json.loads(file.read_text())["layers"]
    return [layer["layer"] for layer in layers], [layer["experts"] for layer in layers]


def test_the_file_says_what_the_model_does(used):
    """The steps of each token add up: from each expert, K for each choice of it."""
    _, file = used
    names, experts = layers_of(file)
    traffic = measured.from_file(file, names, experts)
    k = json.loads(file.read_text())["layers"][0]["chosen"]
    assert traffic.total > 0
    for load, following, steps in zip(traffic.load, traffic.load[1:], traffic.steps, strict=False):
        assert np.array_equal(steps.sum(1), load * k) and np.array_equal(steps.sum(0), following * k)


def test_measured_now_is_what_was_saved(used, tmp_path):
    source, _ = used
    data, file = tmp_path / "data.jsonl", tmp_path / "usage.json"
    data.write_text("".join(json.dumps({"input_ids": [3 + i, 7, 11 * i % 60, 5]}) + "\n" for i in range(9)))
    usage(str(source), UsageOptions(data=str(data)), file)
    opened = open_source(str(source))
    names, experts = layers_of(file)
    saved = measured.from_file(file, names, experts)
    now = measured.from_data(opened, trace(build(opened)).interface, str(data), 0, names, experts)
    for a, b in zip([*saved.load, *saved.steps], [*now.load, *now.steps], strict=True):
        assert np.array_equal(a, b)


def test_usage_of_another_model_is_refused(used):
    _, file = used
    names, experts = layers_of(file)
    for other in ((names[1:], experts[1:]), (names, [e + 1 for e in experts]), (["x", *names[1:]], experts)):
        with pytest.raises(BadInput, match="another model"):
            measured.from_file(file, *other)


@pytest.mark.parametrize("change", ["tokens", "steps", "layers", "negative", "rows"])
def test_a_damaged_file_is_refused(used, tmp_path, change):
    _, file = used
    names, experts = layers_of(file)
    data = json.loads(file.read_text())
    layer = data["layers"][1]
    mode = next(iter(layer["tokens"]))
    if change == "tokens":
        layer["tokens"][mode] = layer["tokens"][mode][:-1]
    elif change == "negative":
        layer["tokens"][mode][0] = -1
    elif change == "steps":
        layer["steps"][0] = "0:x"
    elif change == "rows":
        layer["steps"].append("0:1")
    else:
        del data["layers"]
    damaged = tmp_path / "usage.json"
    damaged.write_text(json.dumps(data))
    with pytest.raises(BadInput, match="mocomp usage writes"):
        measured.from_file(damaged, names, experts)


def test_an_absent_file_is_refused(tmp_path):
    with pytest.raises(BadInput, match="no such file"):
        measured.from_file(tmp_path / "none.json", [], [])
