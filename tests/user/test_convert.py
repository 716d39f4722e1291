"""A user's module becomes an artifact that is proven: names kept, on both targets, and faults are seen."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import mocomp
from mocomp.commands.parity import ParityOptions, parity
from mocomp.errors import BadInput, ParityFailed, Unsupported, Usage
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import Report
from tests.user import modules

NAME = "tests.user.modules:tagger"
DYNAMIC = ("input_ids=batch,seq", "mask=batch,seq")
TARGETS = ("onnxruntime", "onnx")


@pytest.fixture(scope="module")
def example(tmp_path_factory) -> Path:
    """Example inputs [2, 7] in a file."""
    path = tmp_path_factory.mktemp("inputs") / "x.npz"
    random = np.random.default_rng(0)
    np.savez(path, input_ids=random.integers(0, 11, (2, 7)), mask=random.random((2, 7)) < 0.7)
    return path


@pytest.fixture(scope="module")
def tagged(tmp_path_factory, example) -> dict[str, tuple[Path, Report]]:
    """The artifact of the tagger for each target."""
    made = {}
    for target in TARGETS:
        options = ConvertOptions(target=target, inputs=str(example), dynamic=DYNAMIC)
        directory = tmp_path_factory.mktemp(target) / "made"
        made[target] = directory, convert(NAME, directory, options)
    return made


@pytest.mark.parametrize("target", TARGETS)
def test_names_and_dimensions_are_kept(tagged, target):
    directory, report = tagged[target]
    graph = onnx.load(directory / "model.onnx", load_external_data=False).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "seq"],
        "mask": ["batch", "seq"],
        "scores": ["batch", "seq", modules.KINDS],
        "best": ["batch", "seq"],
    }
    assert report.parity is not None and report.parity.passed and len(report.parity.cases) == 4
    assert any("loss (NoneType) is no tensor" in note for note in report.notes)
    assert set(report.source_files) >= {str(Path(modules.__file__).resolve())}


@pytest.mark.parametrize("target", TARGETS)
def test_a_process_of_its_own_runs_it(tagged, target, tmp_path):
    """With onnxruntime alone, at sizes of nobody's choice but this test's."""
    ids, mask = np.arange(26).reshape(2, 13) % 11, np.arange(26).reshape(2, 13) % 3 > 0
    np.savez(tmp_path / "given.npz", input_ids=ids, mask=mask)
    script = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx")
names = [value.name for value in session.get_outputs()]
numpy.savez(sys.argv[3], **dict(zip(names, session.run(None, dict(numpy.load(sys.argv[2]))))))
assert not {"torch", "mocomp"} & set(sys.modules)
"""
    given, got = tmp_path / "given.npz", tmp_path / "got.npz"
    subprocess.run([sys.executable, "-c", script, tagged[target][0], given, got], check=True, cwd=tmp_path)
    with torch.no_grad():
        expected = modules.tagger()(torch.from_numpy(ids), torch.from_numpy(mask))
    found = np.load(got)
    np.testing.assert_allclose(found["scores"], expected["scores"], rtol=0, atol=1e-5)
    assert np.array_equal(found["best"], expected["best"])


def edited(directory: Path, copy: Path, edit) -> Path:
    """A copy of an artifact whose graph was changed, weights and all."""
    copy.mkdir()
    model = onnx.load(directory / "model.onnx")
    edit(model.graph)
    onnx.save(model, copy / "model.onnx")
    (copy / "mocomp.json").write_bytes((directory / "mocomp.json").read_bytes())
    return copy


def scaled(name: str):
    """An edit: one weight a little larger."""

    def edit(graph) -> None:
        weight = next(one for one in graph.initializer if one.name == name)
        weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) * np.float32(1.01), name))

    return edit


def renamed(old: str, new: str):
    """An edit: an input, or an output, and all that reads it, called otherwise."""

    def edit(graph) -> None:
        for value in (*graph.input, *graph.output):
            value.name = new if value.name == old else value.name
        for node in graph.node:
            for names in (node.input, node.output):
                names[:] = [new if name == old else name for name in names]

    return edit


def swapped(first: str, second: str):
    """An edit: two outputs with each other's names."""

    def edit(graph) -> None:
        for old, new in ((first, "other"), (second, first), ("other", second)):
            renamed(old, new)(graph)

    return edit


def again(directory: Path) -> bool:
    """Whether an artifact passes its proof."""
    verdict = parity(directory, options=ParityOptions(trust_remote_code=True))
    return verdict.passed


def test_what_is_edited_and_left_alone_passes(tagged, tmp_path):
    assert again(edited(tagged["onnx"][0], tmp_path / "same", lambda graph: None))


@pytest.mark.parametrize("edit", [scaled("inner.weight"), scaled("head.bias"), swapped("scores", "best")], ids=[*"abc"])
def test_faults_are_seen(tagged, tmp_path, edit):
    assert not again(edited(tagged["onnx"][0], tmp_path / "fault", edit))


def test_an_input_of_another_name_is_seen(tagged, tmp_path):
    with pytest.raises(BadInput, match="an input 'tokens', which the module has not"):
        again(edited(tagged["onnx"][0], tmp_path / "fault", renamed("input_ids", "tokens")))


def test_proving_again_runs_no_code_unasked(tagged):
    with pytest.raises(Unsupported, match="would run again"):
        parity(tagged["onnx"][0])
    assert parity(tagged["onnx"][0], options=ParityOptions(reference=NAME)).passed
    assert parity(tagged["onnxruntime"][0], options=ParityOptions(trust_remote_code=True, seed=3)).passed


def test_proving_again_wants_what_was_there(tagged, tmp_path):
    directory = edited(tagged["onnx"][0], tmp_path / "moved", lambda graph: None)
    data = json.loads((directory / "mocomp.json").read_text())
    data["source_files"][str(tmp_path / "gone.py")] = 3
    (directory / "mocomp.json").write_text(json.dumps(data))
    with pytest.raises(BadInput, match=r"gone\.py is not the file"):
        again(directory)
    np.savez(tmp_path / "other.npz", x=np.ones((2, 4), np.float32))
    data["options"]["dynamic"] = []
    (directory / "mocomp.json").write_text(json.dumps(data))
    with pytest.raises(BadInput, match="it takes x and gives output, and the artifact does not"):
        parity(directory, options=ParityOptions(reference="tests.user.modules:Fixed", inputs=str(tmp_path / "other.npz")))


def test_other_commands_say_that_they_do_not(tagged, command):
    directory = tagged["onnx"][0]
    for line in (("bench", directory), ("eval", directory), ("usage", directory), ("parity", directory, "--bisect")):
        done = command(*line)
        assert done.code == 3 and "made of a module" in done.err, line
    assert command("verify", directory).code == 0
    assert command("parity", directory, "--blocks").code == 2
    done = command("quantize", NAME)
    assert done.code == 2 and "takes checkpoints" in done.err


def test_a_module_in_memory(tmp_path, example):
    """It is left as it was, though it trains and is in 16 bits."""
    module = modules.tagger().to(torch.bfloat16).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    source = mocomp.from_module(module, dict(np.load(example)), {"input_ids": ("batch", None), "mask": ("batch", 7)})
    report = mocomp.convert(source, tmp_path / "made", ConvertOptions(parity="full"))
    assert report.parity is not None and report.parity.passed and module.training and module.seen is None
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())
    assert report.interface.axes["scores"] == {0: "batch"}
    with pytest.raises(BadInput, match="a module in memory"):
        again(tmp_path / "made")
    with pytest.raises(Usage, match="--inputs, and the source is a module in memory"):
        convert(source, tmp_path / "other", ConvertOptions(inputs="x.npz"))


def test_a_graph_without_weights(tmp_path, example):
    options = ConvertOptions(inputs=str(example), dynamic=DYNAMIC, weights="none")
    report = convert(NAME, tmp_path / "made", options)
    assert report.parity is None and not (tmp_path / "made" / "model.onnx.data").exists()


def test_a_fault_of_the_conversion_keeps_nothing(tmp_path, example, monkeypatch):
    """An artifact whose weights are not the module's does not pass."""
    from mocomp.models.user import loading

    def wrong(source):
        weights = honest(source)
        weights._tensors["head.bias"] = weights._tensors["head.bias"] + 0.01
        return weights

    honest = loading.weights_of
    monkeypatch.setattr("mocomp.pipeline.weights_of", wrong)
    with pytest.raises(ParityFailed, match="scores off by"):
        convert(NAME, tmp_path / "made", ConvertOptions(inputs=str(example), dynamic=DYNAMIC))
    assert not (tmp_path / "made").exists()
