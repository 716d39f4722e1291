"""--link-weights: what an artifact reads in place, that it computes the same, and what is refused."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from safetensors import safe_open

from mocomp.errors import BadInput, Usage
from mocomp.lowering.onnx_session import DATA, MODEL, Session
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.weights import disk, recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.linking import FOLDER, RECORD, links_of, span_of
from tests import checkpoints

IDS = np.array([[5, 9, 11, 3, 2, 7, 7]])


@pytest.fixture
def source(tmp_path):
    """source(family, **changes): a checkpoint that a test may change."""
    return lambda family="llama", **changes: checkpoints.make(family, tmp_path / "source", **changes)


def linked(source, output, target="onnxruntime", parity="off", **options):
    return convert(str(source), output, ConvertOptions(target=target, link_weights=True, parity=parity, **options))


def logits(directory):
    session = Session(directory)
    past = {name: np.zeros((1, 2, 0, 16), np.float32) for name in session.inputs if name.startswith("past")}
    return session.run({"input_ids": IDS, "attention_mask": np.ones_like(IDS)} | past)["logits"]


@pytest.mark.parametrize("target", ["onnxruntime", "onnx"])
def test_a_dense_model_is_read_in_place(source, target, tmp_path):
    """The file of weights holds what had to be made, and the artifact gives what one with a copy gives, to the bit."""
    own = source()
    report = linked(own, tmp_path / "linked", target, parity="full")
    convert(str(own), tmp_path / "copied", ConvertOptions(target=target, parity="off"))
    assert report.parity is not None and report.parity.passed
    made, copied = ((tmp_path / name / DATA).stat().st_size for name in ("linked", "copied"))
    read = sum(length for file in report.linked.values() for _, length, _ in file.weights.values())
    assert made < copied / 1000 and read > 0.99 * copied
    assert (tmp_path / "linked" / FOLDER / "model.safetensors").samefile(own / "model.safetensors")
    assert np.array_equal(logits(tmp_path / "linked"), logits(tmp_path / "copied"))


def test_experts_are_made_and_the_rest_is_linked(source, tmp_path):
    """Gates and up rows are interleaved as no checkpoint has them; parts that happen to be neighbours are one."""
    own = source("qwen3_moe", max_shard_size="100KB")
    report = linked(own, tmp_path / "out", parity="full")
    assert report.parity is not None and report.parity.passed
    names = {name for file in report.linked.values() for name in file.weights}
    assert len(report.linked) > 1 and "model.embed_tokens.weight" in names and not any("gate_up_proj" in name for name in names)
    read = sum(length for file in report.linked.values() for _, length, _ in file.weights.values())
    assert 0 <= (tmp_path / "out" / DATA).stat().st_size - (report.artifact.weight_bytes - read) < 64 * 8
    assert any("weights are read from model-0000" in note for note in report.notes)
    held = json.loads((tmp_path / "out" / "mocomp.json").read_text())["linked"]
    assert {name: file["bytes"] for name, file in held.items()} == {name: (own / name).stat().st_size for name in held}


def test_another_type_is_not_linked_and_said(source, tmp_path):
    report = linked(source(dtype=torch.bfloat16), tmp_path / "out")
    assert not report.linked and not (tmp_path / "out" / FOLDER).exists()
    assert any("none is linked" in note for note in report.notes)


def test_a_changed_checkpoint_is_told(source, tmp_path):
    """A time of change alone is not a change; one byte of a weight is, whoever made it, and whatever the size and time say."""
    own, out = source(), tmp_path / "out"
    linked(own, out)
    before = logits(out)
    os.utime(own / "model.safetensors")
    assert np.array_equal(logits(out), before)
    with (own / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    with pytest.raises(BadInput, match=r"weight .* is not what it was when the artifact was made: .* has changed"):
        Session(out)


def test_a_checkpoint_that_is_replaced_changes_nothing(source, tmp_path):
    """The artifact keeps its own name of the file that it was made of."""
    own, out = source(), tmp_path / "out"
    linked(own, out)
    before = logits(out)
    (own / "model.safetensors").unlink()
    (own / "model.safetensors").write_bytes(b"another")
    assert np.array_equal(logits(out), before)


def test_a_foreign_link_is_refused(source, tmp_path):
    own, out = source(), tmp_path / "out"
    linked(own, out)
    record = json.loads((out / RECORD).read_text())
    (out / RECORD).write_text(json.dumps({"other.safetensors": record["model.safetensors"]}))
    with pytest.raises(BadInput, match=r"linked/model\.safetensors was not linked by mocomp"):
        Session(out)
    (out / RECORD).write_text(json.dumps(record))
    (out / FOLDER / "model.safetensors").unlink()
    (out / FOLDER / "model.safetensors").symlink_to(own / "model.safetensors")
    with pytest.raises(BadInput, match="a link to a file outside its directory"):
        Session(out)


@pytest.mark.parametrize(
    "change",
    [{"weights": {"a": [1]}}, {"weights": 5}, {"weights": {"a": ["x", "y", "z"]}}, {"weights": {"a": [-1, 5, "0"]}},
     {"weights": {"a": [0, -5, "0"]}}, {"weights": {"a": [0, 1 << 50, "0"]}}, {"weights": {"a": [0, 5, 7]}},
     {"bytes": "many"}, {"changed": None}, {"source": 3}, {"odd": 1}],
)  # fmt: skip
def test_a_damaged_record_is_refused(tmp_path, change):
    whole = {"source": "x", "bytes": 100, "changed": 7, "weights": {"w": [0, 100, "00"]}}
    for said, known in ((whole, True), (whole | change, False)):
        (tmp_path / RECORD).write_text(json.dumps({"model.safetensors": said}))
        if known:
            assert links_of(tmp_path)["model.safetensors"].weights == {"w": (0, 100, "00")}
            continue
        with pytest.raises(BadInput, match="not a record of linked files"):
            links_of(tmp_path)


def test_a_shard_of_any_name_stays_as_it_is(source, tmp_path):
    """One that is called as the record of links was once written through its own link."""
    own = source()
    (own / "model.safetensors").rename(own / RECORD)
    with safe_open(own / RECORD, "pt") as file:
        index = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), RECORD)}
    (own / "model.safetensors.index.json").write_text(json.dumps(index))
    before = (own / RECORD).read_bytes()
    linked(own, tmp_path / "out")
    assert (own / RECORD).read_bytes() == before and (tmp_path / "out" / FOLDER / RECORD).samefile(own / RECORD)
    assert list(links_of(tmp_path / "out")) == [RECORD] and np.isfinite(logits(tmp_path / "out")).all()


def test_a_linked_weight_that_is_no_number_is_refused(source, tmp_path):
    own = source()
    with Checkpoint(own) as checkpoint:
        entry = checkpoint.entries["model.norm.weight"]
    with (own / "model.safetensors").open("r+b") as file:
        file.seek(entry.offset + 8)
        file.write(np.array([np.nan], np.float32).tobytes())
    with pytest.raises(BadInput, match=r"model\.norm\.weight holds NaN"):
        linked(own, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_that_is_gone_is_told(source, tmp_path):
    linked(source(), tmp_path / "out")
    (tmp_path / "out" / FOLDER / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"model.safetensors"):
        Session(tmp_path / "out")


def test_another_disk_is_refused(source, tmp_path, monkeypatch):
    def refuse(first, second):
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(disk.system, "link", refuse)
    with pytest.raises(BadInput, match=r"no second name of model\.safetensors can be made"):
        linked(source(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_targets_that_copy_refuse_it(source, tmp_path):
    with pytest.raises(Usage, match="--link-weights with target huggingface"):
        linked(source(), tmp_path / "out", "huggingface", quantize="int4")


def test_removing_the_artifact_leaves_the_checkpoint(source, tmp_path):
    own = source()
    before = (own / "model.safetensors").read_bytes()
    linked(own, tmp_path / "out")
    linked(own, tmp_path / "out", force=True)
    assert (own / "model.safetensors").read_bytes() == before
    assert (tmp_path / "out" / MODEL).exists()


def test_a_span_holds_what_the_recipe_gives(source):
    """Whatever says that it stands in the checkpoint stands there; what is in another order or type says that it does not."""
    with Checkpoint(source()) as checkpoint:
        table = checkpoint.recipe("model.embed_tokens.weight")
        halves = [recipes.slice_of(table, 0, 0, 50), recipes.slice_of(table, 0, 50, 128)]
        spread = recipes.Slice((3, 64), torch.float32, table, 0, 0, 6, 2)
        there = [
            table,
            *halves,
            recipes.Concat(table.shape, table.dtype, tuple(halves), 0),
            recipes.reshape(recipes.slice_of(table, 0, 3, 7), (2, 128)),
            recipes.stack([recipes.slice_of(table, 0, i, i + 2) for i in (0, 2, 4)], 0),
            recipes.slice_of(recipes.slice_of(table, 0, 10, 90), 0, 5, 6),
        ]
        for recipe in there:
            span = span_of(recipe, checkpoint)
            assert span is not None
            content = span.file.read_bytes()[span.offset : span.offset + span.length]
            assert content == recipe.evaluate(checkpoint.read).contiguous().numpy().tobytes()
        made = [
            spread,
            recipes.slice_of(table, 1, 0, 32),
            recipes.permute(table, (1, 0)),
            recipes.cast(table, torch.float16),
            recipes.concat(halves[::-1], 0),
            recipes.concat([table, checkpoint.recipe("lm_head.weight")], 1),
            recipes.literal(torch.ones(3)),
            recipes.slice_of(table, 0, 5, 5),
        ]
        assert [span_of(recipe, checkpoint) for recipe in made] == [None] * len(made)
