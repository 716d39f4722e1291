"""A .pt2 file: what it is made of is kept, and what would run code is refused before torch reads it."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import Dim

from mocomp.errors import BadInput
from mocomp.models.user.exported import open_exported
from mocomp.models.user.loading import look
from mocomp.models.user.running import run
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from tests.user import modules


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """The tagger, exported with its batch and its sequence free; the scale is a number that it keeps."""
    path = tmp_path_factory.mktemp("pt2") / "tagger.pt2"
    module = modules.tagger().eval()
    module.__class__ = Quiet
    batch, seq = Dim("batch"), Dim("seq", min=2, max=64)
    given = (torch.arange(14).reshape(2, 7) % 11, torch.arange(14).reshape(2, 7) % 3 > 0)
    dims = {"input_ids": {0: batch, 1: seq}, "mask": {0: batch, 1: seq}}
    torch.export.save(torch.export.export(module, given, dynamic_shapes=dims), path)
    return path


class Quiet(modules.Tagger):
    """The tagger without what it notes in passing, which torch.export does not take."""

    def forward(self, input_ids: torch.Tensor, mask: torch.Tensor) -> dict:
        made = super().forward(input_ids, mask, 3.0)
        del self.seen
        return {name: value for name, value in made.items() if value is not None}


def opened(path: Path):
    """A file as a source, by what it says itself."""
    return open_exported(path, {}, {}, (), ())


def changed(archive: Path, copy: Path, file: str, edit, name: str = "") -> Path:
    """A copy of an archive in which the content of `file` is what `edit` makes of it, or stands under another name."""
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(copy, "w") as new:
        for entry in old.namelist():
            content = old.read(entry)
            hit = entry.endswith(file)
            new.writestr(entry.replace(file, name or file) if hit else entry, edit(content) if hit else content)
    return copy


def test_what_is_left_alone_is_taken(archive, tmp_path):
    path = changed(archive, tmp_path / "same.pt2", "models/model.json", lambda content: content)
    assert list(opened(path).inputs) == ["input_ids", "mask"]


def test_it_says_itself_what_it_takes(archive, tmp_path):
    source = opened(archive)
    names = list(source.axes["input_ids"].values())
    assert source.axes["mask"] == source.axes["input_ids"] and len(set(names)) == 2
    assert {name for name, _ in source.module.named_modules()} >= {"exported.inner", "exported.head"}
    report = convert(str(archive), tmp_path / "made", ConvertOptions(target="onnx"))
    assert report.parity is not None and report.parity.passed
    assert (report.interface.inputs, report.interface.outputs) == (["input_ids", "mask"], ["scores", "best"])
    ids, mask = torch.randint(0, 11, (3, 5)), torch.rand(3, 5) < 0.5
    with torch.no_grad():
        expected = modules.tagger()(ids, mask, 3.0)
    torch.testing.assert_close(run(source, {"input_ids": ids, "mask": mask})["scores"], expected["scores"])


def test_other_examples_and_names(archive):
    ids, mask = np.zeros((4, 6), np.int64), np.ones((4, 6), bool)
    dynamic = {"input_ids": ("batch", "seq"), "mask": ("batch", "seq")}
    source = open_exported(archive, {"mask": mask, "input_ids": ids}, dynamic, ("a", "b"), ())
    assert source.sizes == {"batch": 4, "seq": 6} and list(run(source, source.inputs)) == ["a", "b"]
    with pytest.raises(BadInput, match="it has no input tokens"):
        open_exported(archive, {"tokens": ids}, {}, (), ())
    with pytest.raises(BadInput, match="it needs input mask"):
        open_exported(archive, {"input_ids": ids}, {}, (), ())


class Touching:
    """What leaves a trace when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def in_json(edit):
    """An edit of a file of JSON."""

    def edited(content: bytes) -> bytes:
        data = json.loads(content)
        edit(data)
        return json.dumps(data).encode()

    return edited


def target(graph) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def a_file(graph) -> None:
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"


def text(graph) -> None:
    node = graph["graph_module"]["graph"]["nodes"][0]
    node["inputs"].append({"name": "filename", "arg": {"as_string": "made"}, "kind": 1})


def attribute_getter(graph) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "_operator.attrgetter"


def size(graph) -> None:
    values = graph["graph_module"]["graph"]["tensor_values"]["input_ids"]["sizes"]
    values[0]["as_expr"]["expr_str"] = "__import__('os').system('true')"


def attribute(graph) -> None:
    values = graph["graph_module"]["graph"]["tensor_values"]["input_ids"]["sizes"]
    values[0]["as_expr"]["expr_str"] = "Symbol('s1').__class__"


def name(graph) -> None:
    graph["graph_module"]["graph"]["nodes"][0]["name"] = "x = 1; import os"


def container(graph) -> None:
    graph["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = '{"__enum__": true, "fqn": "antigravity:x"}'


def as_pickle(config) -> None:
    config["config"]["inner.weight"]["use_pickle"] = True


def elsewhere(config) -> None:
    config["config"]["inner.weight"]["path_name"] = "../../archive_format"


FAULTS = {
    "operator": ("models/model.json", in_json(target), "torch.os.system"),
    "operator that writes a file": ("models/model.json", in_json(a_file), "from_file"),
    "text that nobody wants": ("models/model.json", in_json(text), "gives text to"),
    "operator that looks things up": ("models/model.json", in_json(attribute_getter), "attrgetter"),
    "expression": ("models/model.json", in_json(size), "a size in its graph"),
    "attribute of a size": ("models/model.json", in_json(attribute), "a size in its graph"),
    "name": ("models/model.json", in_json(name), "a name in its graph"),
    "container": ("models/model.json", in_json(container), "containers that are made by code"),
    "pickled weight": ("model_weights_config.json", in_json(as_pickle), "stored as a pickle"),
    "weight elsewhere": ("model_weights_config.json", in_json(elsewhere), "stored as a pickle"),
    "short weight": ("data/weights/weight_0", lambda content: b"", "and is empty"),
    "no JSON": ("models/model.json", lambda content: content[: len(content) // 2], "damaged"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_would_run_code_or_is_damaged_is_refused(archive, tmp_path, fault):
    file, edit, message = FAULTS[fault]
    with pytest.raises(BadInput, match=message):
        opened(changed(archive, tmp_path / "bad.pt2", file, edit))


def test_pickles_are_not_loaded(archive, tmp_path):
    """Each place in which torch would unpickle."""
    trace = tmp_path / "trace"
    evil = io.BytesIO()
    torch.save((Touching(trace),), evil)
    places = {
        "data/sample_inputs/model.pt": "",
        "data/weights/weight_0": "data/weights/model.pt",
        "data/constants/model_constants_config.json": "data/constants/opaque_obj_0",
        "archive_version": "data/aotinductor/model/model.so",
    }
    for file, other in places.items():
        with pytest.raises(BadInput, match="may run code"):
            opened(changed(archive, tmp_path / "bad.pt2", file, lambda content: evil.getvalue(), other))
    assert not trace.exists()
    torch.load(io.BytesIO(evil.getvalue()), weights_only=False)  # noqa: TID251 - to see that it would have
    assert trace.exists()


def test_no_archive(tmp_path):
    for content in (b"", b"PK\x05\x06" + bytes(18), b"no zip"):
        (tmp_path / "bad.pt2").write_bytes(content)
        with pytest.raises(BadInput, match=r"no archive of torch\.export"):
            opened(tmp_path / "bad.pt2")
    with pytest.raises(BadInput, match="no such file"):
        opened(tmp_path / "absent.pt2")


def test_mixtures_in_it_are_recognised(tmp_path):
    """The experts run on all tokens, as torch.export wants it; sizes are free."""
    torch.manual_seed(0)
    batch, seq = Dim("batch"), Dim("seq", min=2, max=64)
    module, given = modules.Mixed().eval(), torch.randn(2, 7, modules.HIDDEN)
    torch.export.save(torch.export.export(module, (given,), dynamic_shapes={"x": {0: batch, 1: seq}}), tmp_path / "mixed.pt2")
    source = opened(tmp_path / "mixed.pt2")
    assert [block.how for block in look(source).recognition.blocks] == ["mixture"]
