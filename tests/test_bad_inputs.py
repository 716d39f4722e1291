"""Whatever is wrong with what a user hands over: one message of its own, its exit code, no traceback, nothing left behind."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

WEIGHTS, CONFIG = "model.safetensors", "config.json"


@pytest.fixture
def source(checkpoint, tmp_path) -> Path:
    """A good checkpoint that a test may damage."""
    return shutil.copytree(checkpoint("mixtral"), tmp_path / "source")


@pytest.fixture
def convert(command, source, tmp_path):
    """convert(*arguments): the failure of converting `source`, of which nothing may be left."""

    def run(*arguments: object, source: Path | str = source):
        output = tmp_path / "output" / "artifact"
        done = command("convert", source, "-o", output, *arguments)
        assert done.out == "" and "Traceback" not in done.err and "\nmocomp: " in "\n" + done.err
        assert not (tmp_path / "output").exists() and not list(tmp_path.rglob("*.partial"))
        return done

    return run


def edit_config(source: Path, **fields: object) -> None:
    config = json.loads((source / CONFIG).read_text()) | fields
    (source / CONFIG).write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def edit_weights(source: Path, edit) -> None:
    tensors = load_file(source / WEIGHTS)
    edit(tensors)
    save_file(tensors, source / WEIGHTS, {"format": "pt"})


def split(source: Path) -> None:
    """The same weights in two shards and an index, of which the second shard is not there."""
    tensors = load_file(source / WEIGHTS)
    shards = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(tensors)}
    (source / WEIGHTS).unlink()
    save_file({name: t for name, t in tensors.items() if shards[name][9] == "1"}, source / "model-00001-of-00002.safetensors")
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def only_a_pickle(source: Path) -> None:
    (source / WEIGHTS).rename(source / "pytorch_model.bin")


CONFIGS = {
    "no config": (lambda s: (s / CONFIG).unlink(), 5, "no config.json", "save_pretrained"),
    "config is not JSON": (lambda s: (s / CONFIG).write_text('{"model_type": '), 5, "not readable as JSON", "again"),
    "config is a list": (lambda s: (s / CONFIG).write_text("[]"), 5, "not a JSON object", ""),
    "ours without what it was made from": (
        lambda s: edit_config(s, model_type="mocomp", mocomp={"format": 1, "modality": None, "mixtures": [], "depths": []}),
        5,
        "no config of the model it was made from",
        "",
    ),
    "config without a type": (lambda s: edit_config(s, model_type=None), 5, "has no model_type", "Add the model_type"),
    "type of tomorrow": (
        lambda s: edit_config(s, model_type="gpt7"),
        3,
        "model_type 'gpt7' is not known",
        "Upgrade transformers",
    ),
    "field of a wrong type": (lambda s: edit_config(s, hidden_size="wide"), 5, "hidden_size", "Correct the named field"),
    "code of its own": (
        lambda s: edit_config(s, auto_map={"AutoModel": "m.M"}),
        3,
        "its own Python code",
        "--trust-remote-code",
    ),
}
CHECKPOINTS = {
    "no weights": (lambda s: (s / WEIGHTS).unlink(), "no model.safetensors", ""),
    "only a pickle": (only_a_pickle, "only pickled weights (pytorch_model.bin)", "safe_serialization=True"),
    "missing shard": (split, "1 of 2 shards are missing: model-00002-of-00002.safetensors", "Copy or download"),
    "truncated": (lambda s: os.truncate(s / WEIGHTS, 100_000), "damaged or truncated", "again"),
    "header of garbage": (lambda s: (s / WEIGHTS).write_bytes(os.urandom(4096)), "damaged or truncated", "again"),
    "parameter missing": (
        lambda s: edit_weights(s, lambda t: t.pop("lm_head.weight")),
        "lm_head.weight",
        "shards are incomplete",
    ),
    "wrong shape": (
        lambda s: edit_weights(s, lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:-1].clone()})),
        "model.norm.weight is [63] in the checkpoint (model.norm.weight), expected [64]",
        "not of the same model",
    ),
    "config of another size": (lambda s: edit_config(s, vocab_size=100), "expected [100, 64]", "not of the same model"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_config(convert, source, name):
    damage, code, *fragments = CONFIGS[name]
    damage(source)
    done = convert()
    assert done.code == code and all(fragment in done.err for fragment in (str(source), *fragments))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(convert, source, name):
    damage, *fragments = CHECKPOINTS[name]
    damage(source)
    done = convert()
    assert done.code == 5 and all(fragment in done.err for fragment in (str(source), *fragments))


EXPERTS = {
    "one turned round": (lambda t, name: t.update({name: t[name].T.contiguous()}), "experts.3.w1.weight is [64, 48]"),
    "one missing": (lambda t, name: t.pop(name), "is [7, 48, 64]"),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_expert(convert, source, name):
    """Experts are packed when they are loaded, so the message must lead back to the tensors on disk."""
    damage, message = EXPERTS[name]
    edit_weights(source, lambda t: damage(t, "model.layers.1.block_sparse_moe.experts.3.w1.weight"))
    done = convert()
    assert done.code == 5 and all(
        part in done.err for part in (message, "model.layers.1.", str(source), "not of the same model")
    )


def test_a_directory_that_is_not_there(convert, tmp_path):
    done = convert(source=tmp_path / "typo")
    assert done.code == 5 and f"{tmp_path / 'typo'}: no such directory" in done.err and "hub name ORG/NAME" in done.err


def test_a_hub_name_that_the_hub_does_not_give(convert, monkeypatch):
    def refuse(name: str, **rest: object) -> str:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    done = convert(source="nobody/nothing")
    assert done.code == 5 and "nobody/nothing: no such directory, and the hub did not give it: ConnectionError" in done.err


def test_a_directory_that_may_not_be_read(convert, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may read anything
    done = convert()
    assert done.code == 5 and "may not be read" in done.err and "permissions" in done.err


def test_a_full_disk(convert, monkeypatch):
    def fill(*rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("mocomp.weights.writer.Writer.write", fill)
    done = convert("--parity", "off")
    assert done.code == 5 and "the disk is full" in done.err and "Free some space" in done.err


def test_an_output_that_exists(command, source, tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "mine").write_text("precious")
    done = command("convert", source, "-o", tmp_path / "artifact")
    assert done.code == 5 and "exists already" in done.err and "--force" in done.err
    assert (tmp_path / "artifact" / "mine").read_text() == "precious"


def test_an_output_that_exists_is_kept_when_the_new_one_fails(command, source, tmp_path):
    (tmp_path / "artifact").mkdir()
    (source / CONFIG).unlink()
    assert command("convert", source, "-o", tmp_path / "artifact", "--force").code == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["artifact", "source"]


def test_the_source_is_not_an_output(command, source):
    """With --force it would be gone when its artifact is whole."""
    done = command("convert", source, "-o", source, "--force")
    assert done.code == 5 and "is read, and lies in it" in done.err and (source / WEIGHTS).exists()


def test_memory_that_is_not_enough(convert, monkeypatch):
    def exhaust(*rest: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mocomp.pipeline.load", exhaust)
    done = convert()
    assert done.code == 5 and "out of memory" in done.err


def test_a_fault_of_ours_says_that_it_is_ours(convert, monkeypatch):
    def fail(*rest: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("mocomp.pipeline.load", fail)
    done = convert()
    assert done.code == 70 and "a fault of mocomp, please report it: ZeroDivisionError: division by zero" in done.err


OPTIONS = {
    "unknown target": (["--target", "abacus"], "no target 'abacus'; they are huggingface, onnx, onnxruntime"),
    "unknown pass": (["--print-after", "fuse_everything"], "no pass 'fuse_everything'; they are clean, common_subexpressions"),
    "unknown task": (["--task", "juggling"], "no task 'juggling'; they are text-generation"),
}
FILES = {
    "unknown key": ('{"tagret": "onnxruntime"}', "unknown option 'tagret'; known are "),
    "wrong type": ('{"seed": "one"}', "seed is 'one', expected int"),
    "truth for a number": ('{"seed": true}', "seed is True, expected int"),
    "a seed below 0": ('{"seed": -1}', "seed is -1, and less than 0"),
    "unknown value": ('{"parity": "perhaps"}', "parity is 'perhaps', expected one of full, blocks, off"),
    "not a mapping": ("[1, 2]", "not a mapping of options"),
    "not readable": ('{"seed": ', "not readable"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_option(convert, monkeypatch, name):
    """Said at once, before any long work."""
    monkeypatch.setattr("mocomp.pipeline.load", lambda *rest: pytest.fail("the work began"))
    arguments, message = OPTIONS[name]
    done = convert(*arguments)
    assert done.code == 2 and message in done.err


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_options_in_a_file(convert, tmp_path, suffix, name):
    text, message = FILES[name]
    (tmp_path / "options").with_suffix(suffix).write_text(text)
    done = convert("--config", (tmp_path / "options").with_suffix(suffix))
    assert done.code == 2 and message in done.err and f"options{suffix}" in done.err


ARTIFACTS = {
    "no report": (None, "no mocomp.json"),
    "report is not JSON": ("{", "not readable as JSON"),
    "report of something else": ("{}", "not a report of mocomp convert"),
}


ODD = [{"gpu": 90}, {"gpu": "H100"}, {"workspace": 5}, {"profiles": [1]}, {"profiles": "a:batch=1"}, {"tensorrt": 11.4}]


@pytest.mark.parametrize("odd", ODD, ids=str)
@pytest.mark.parametrize("name", ["parity", "check", "build", "bench"])
def test_an_artifact_with_odd_options(command, converted, tmp_path, name, odd):
    report = json.loads((converted("mixtral").directory / "mocomp.json").read_text())
    report["options"] |= odd
    (tmp_path / "mocomp.json").write_text(json.dumps(report))
    (tmp_path / "model.onnx").write_bytes(b"")
    done = command(name, tmp_path)
    assert done.code == 5 and "not a report of mocomp convert" in done.err and next(iter(odd)) in done.err


def test_parity_of_a_graph_alone(command, source, tmp_path):
    (source / WEIGHTS).unlink()
    assert command("convert", source, "-o", tmp_path / "artifact", "--weights", "none").code == 0
    done = command("parity", tmp_path / "artifact")
    assert done.code == 5 and "a graph without weights" in done.err and str(tmp_path / "artifact") in done.err


def test_parity_whose_source_has_moved(command, converted, tmp_path):
    artifact = shutil.copytree(converted("mixtral").directory, tmp_path / "artifact")
    report = json.loads((artifact / "mocomp.json").read_text())
    (artifact / "mocomp.json").write_text(json.dumps(report | {"source": str(tmp_path / "gone")}))
    done = command("parity", artifact)
    assert done.code == 5 and f"{tmp_path / 'gone'}: no such directory" in done.err and "--reference" in done.err


@pytest.mark.parametrize("name", ARTIFACTS)
def test_parity_of_what_is_no_artifact(command, tmp_path, name):
    text, message = ARTIFACTS[name]
    if text is not None:
        (tmp_path / "mocomp.json").write_text(text)
    done = command("parity", tmp_path)
    assert done.code == 5 and message in done.err and str(tmp_path) in done.err and "Traceback" not in done.err
