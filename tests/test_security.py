"""What docs/security.md promises, besides what tests/test_damaged.py holds."""

import importlib.util
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file, save_file

from mocomp import report as reports
from mocomp.errors import BadInput, Unsupported
from mocomp.lowering.external_data import refuse_foreign_data
from mocomp.lowering.onnx_session import Session
from mocomp.lowering.onnx_session import load as load_graph
from mocomp.models.limits import MOST, MOST_LAYERS, check_config
from mocomp.models.source import files_to_carry, open_source
from mocomp.report import console
from mocomp.terminal import printable
from mocomp.verify.reference import Reference
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.finite import is_finite
from mocomp.weights.headers import DTYPES
from tests import checkpoints

ROOT = Path(__file__).parent.parent
EVIL = "model.<script>alert(1)</script>[red]"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe"


@pytest.fixture
def source(checkpoint, tmp_path) -> Path:
    return shutil.copytree(checkpoint("qwen3_moe"), tmp_path / "source")


# code


class Touch:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


def test_a_pickle_is_never_loaded(command, source, tmp_path):
    """Not beside safetensors, where transformers runs the original, and not where there is nothing else."""
    trace = tmp_path / "trace"
    torch.save({"lm_head.weight": Touch(trace)}, source / "pytorch_model.bin")
    Reference.load(open_source(str(source)), None)  # type: ignore[arg-type]
    (source / "model.safetensors").unlink()
    assert command("convert", source, "-o", tmp_path / "made").code == 5 and not trace.exists()
    torch.load(source / "pytorch_model.bin", weights_only=False)  # noqa: TID251
    assert trace.exists()  # it would have been seen


def test_the_original_is_not_loaded_from_a_pickle(source):
    """The proof runs transformers, which would fall back on it."""
    opened = open_source(str(source))
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="only pickled weights"):
        Reference.load(opened, None)  # type: ignore[arg-type]


def test_an_artifact_cannot_say_that_its_code_is_trusted(monkeypatch, tmp_path):
    """Who made it may have trusted the source; who was sent it has not."""
    monkeypatch.setattr(reports, "recorded", lambda directory: {"options": {"trust_remote_code": True}})
    assert reports.read(tmp_path)["options"]["trust_remote_code"] is False
    assert reports.read(tmp_path, trust_remote_code=True)["options"]["trust_remote_code"] is True


def test_code_in_a_part_of_the_config_does_not_run(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"parts": [{"auto_map": {"AutoConfig": "m.C"}}]}))
    with pytest.raises(Unsupported, match="its own Python code"):
        open_source(str(source))


# paths


def onnx_file(directory: Path, place: str, where: str) -> Path:
    """An ONNX file with a tensor at `place`: as a weight, in a constant, inside a branch, or in a function."""
    tensor = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=place)
    constant = helper.make_node("Constant", [], ["w"], value=tensor)
    add = helper.make_node("Add", ["x", "w"], ["y"])
    x, y = (helper.make_tensor_value_info(name, 1, [4]) for name in "xy")
    flag = helper.make_node("Constant", [], ["flag"], value=helper.make_tensor("f", 9, [], [True]))
    branch = helper.make_graph([constant, helper.make_node("Identity", ["w"], ["z"])], "b", [], [
        helper.make_tensor_value_info("z", 1, [4])
    ])  # fmt: skip
    nodes = {
        "weight": [add],
        "constant": [constant, add],
        "branch": [flag, helper.make_node("If", ["flag"], ["w"], then_branch=branch, else_branch=branch), add],
        "function": [helper.make_node("F", ["x"], ["y"], domain="own")],
    }
    graph = helper.make_graph(nodes[where], "g", [x], [y], [tensor] if where == "weight" else [])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F", ["x"], ["y"], [constant, add], opsets[:1])] if where == "function" else []
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    return directory / "model.onnx"


PLACES = {
    "above": "../secret",
    "absolute": "{}/secret",
    "a link": "link",
    "below a link": "linked/secret",
    "roundabout": "a/../../secret",
}


@pytest.fixture
def directory(tmp_path) -> Path:
    made = tmp_path / "artifact"
    made.mkdir()
    np.ones(4, np.float32).tofile(tmp_path / "secret")
    (made / "link").symlink_to(tmp_path / "secret")
    (made / "linked").symlink_to(tmp_path)
    return made


@pytest.mark.parametrize("where", ["weight", "constant", "branch", "function"])
@pytest.mark.parametrize("place", PLACES)
def test_external_data_stays_in_its_directory(directory, place, where):
    file = onnx_file(directory, PLACES[place].format(directory.parent), where)
    for opens in (Session, load_graph, lambda directory: refuse_foreign_data(file)):
        with pytest.raises(BadInput, match=r"external data of tensor w.*outside its directory") as caught:
            opens(directory)
        assert caught.value.where == str(file)


def test_external_data_beside_the_file_is_read(directory):
    np.full(4, 2, np.float32).tofile(directory / "own")
    onnx_file(directory, "own", "weight")
    assert Session(directory).run({"x": np.ones(4, np.float32)})["y"].tolist() == [3, 3, 3, 3]
    (directory / "own").unlink()
    load_graph(directory)  # a graph may be without its weights


def test_check_refuses_external_data_elsewhere(command, directory):
    done = command("check", onnx_file(directory, "../secret", "weight"))
    assert done.code == 5 and "outside its directory" in done.err


def test_a_snapshot_of_the_hub_is_read_through_its_links(checkpoint, tmp_path):
    """The cache keeps each file once, under its hash, and a snapshot is made of links to them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "0f3"
    shutil.copytree(checkpoint("qwen3_moe"), blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    assert open_source(str(snapshot)).config.model_type == "qwen3_moe" and files_to_carry(snapshot)
    with Checkpoint(snapshot) as opened:
        assert opened.entries
    (tmp_path / "blobs").rename(tmp_path / "others")
    (tmp_path / "blobs").mkdir()
    for path in snapshot.iterdir():
        path.unlink()
        path.symlink_to(tmp_path / "others" / path.name)
    with pytest.raises(BadInput, match="outside its directory"):
        Checkpoint(snapshot)


# sizes


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_sizes_of_every_family_are_believed(family):
    check_config(checkpoints.config(family).to_dict(), "here")


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"num_hidden_layers": MOST_LAYERS + 1}, "num_hidden_layers"),
        ({"vision_config": {"depth": 10**9}}, "vision_config.depth"),
        ({"parts": [{"hidden_size": MOST + 1}]}, "parts.hidden_size"),
        ({"moe_intermediate_size": [48, 10**12]}, "moe_intermediate_size"),
        ({"rope_parameters": {"original_max_position_embeddings": 1e30}}, "original_max_position_embeddings"),
        ({"num_experts": float("nan")}, "num_experts"),
        ({"num_experts": -2}, "num_experts"),
    ],
)
def test_absurd_sizes_are_named(fields, name):
    with pytest.raises(BadInput, match=name):
        check_config(fields, "here")


def test_largest_sizes_that_there_are_are_believed():
    largest = {"num_hidden_layers": 126, "max_position_embeddings": 10_485_760, "vocab_size": 262_208, "n_routed_experts": 512}
    check_config(largest | {"moe_layer_end_index": -1, "rope_theta": 5e8, "eos_token_id": 10**9}, "here")


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.is_floating_point], ids=str)
def test_every_pattern_of_bits_is_judged(dtype):
    """Against torch, which can tell after a cast to float64."""
    if dtype.itemsize > 2:
        values = torch.tensor(
            [0.0, -1.5, torch.finfo(dtype).max, torch.finfo(dtype).tiny, float("inf"), float("nan")], dtype=dtype
        )
    else:
        kind = torch.uint8 if dtype.itemsize == 1 else torch.int16
        values = torch.arange(1 << 8 * dtype.itemsize).to(kind).view(dtype)[:: 1 if dtype.itemsize == 1 else 37]
    expected = values.to(torch.float64).isfinite()
    assert [is_finite(value.reshape(1)) for value in values] == expected.tolist()
    ones = torch.ones(99, dtype=torch.float32).to(dtype)
    for value in (values[~expected][:1], values[expected][:1]):
        assert is_finite(torch.cat([ones.view(torch.uint8), value.view(torch.uint8)]).view(dtype)) is bool(
            value.to(torch.float64).isfinite().all()
        )


# names


def test_names_are_escaped_in_report_and_messages(command, source, tmp_path):
    """A tensor that the model has no place for is named in the notes."""
    loaded = load_file(source / "model.safetensors") | {EVIL: torch.zeros(1)}
    save_file(loaded, source / "model.safetensors", {"format": "pt"})
    done = command("convert", source, "-o", tmp_path / "made", "--parity", "off")
    page = (tmp_path / "made" / "report.html").read_text()
    assert done.code == 0 and EVIL in done.out and EVIL in (tmp_path / "made" / "mocomp.json").read_text()
    assert "model.&lt;script&gt;alert(1)" in page and "<script>alert" not in page


def test_control_characters_do_not_reach_the_terminal(capsys, monkeypatch):
    console.line(f"layer {ESCAPES}")
    console.table(["layer", "k"], [[f"{EVIL}{ESCAPES}", "2"]])
    shown = capsys.readouterr().out
    assert shown.count(r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe") == 2 and EVIL in shown
    assert not any(sign in shown for sign in "\x1b\x07\x9b\u202e")
    monkeypatch.setattr(console, "printable", lambda text: text)
    console.line(f"layer {ESCAPES}")
    assert "\x1b" in capsys.readouterr().out  # rich does not keep them back itself


def test_what_can_be_printed_stays_as_it_is():
    assert printable("größe 層\tα\n") == "größe 層\tα\n" and printable("a\rb\0") == r"a\rb\x00"


# a short sample of benchmarks/fuzz.py


def test_mutated_headers_and_configs_end_well():
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None and spec.loader is not None
    fuzz = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fuzz)
    with fuzz.workplace() as (good, place):
        ends = [fuzz.tried(number, good, place) for number in range(25)]
    assert not [end for end in ends if end.startswith("finding")]
    assert {"success", "exit code 5"} <= set(ends)
    assert fuzz.outcome([lambda source: {}["key"]], Path()).startswith("finding: KeyError")


def test_a_file_that_is_no_graph_is_told(directory):
    (directory / "model.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(BadInput, match="damaged"):
        refuse_foreign_data(directory / "model.onnx")
