"""Calibration data: what is refused, what a block sees of it, and what becomes of it in a router."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mocomp.calibration.capture import capture, usage
from mocomp.calibration.data import data_for
from mocomp.calibration.sample import Sample
from mocomp.checkpoints import opened
from mocomp.commands.upcycle import upcycle
from mocomp.errors import BadInput, Usage
from mocomp.models.source import open_source
from mocomp.nn.model import load
from mocomp.options import UpcycleOptions
from mocomp.plans.modality import Modality
from mocomp.plans.plan import ModelPlan
from mocomp.verify.reference import Reference

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "dense"
GROUPS = Modality(("text", "image"), "input_ids", ((), ((100, 127),)), ("", ""), "text")
PLAN = ModelPlan(GROUPS)
ROWS = [[1, 2, 3], [100, 4, 101, 5], [7], [127, 126]]


@pytest.fixture(scope="module")
def llama(checkpoint):
    """The opened llama with the model itself."""
    with opened(str(checkpoint("llama")), UpcycleOptions()) as dense:
        yield dense, Reference.load(dense.source, dense.traced.interface)


def written(path: Path, *rows: object) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def given(dense, file: str, plan: ModelPlan | None = None):
    return data_for(dense.source, dense.traced.interface, file, 0, plan)


BAD = {
    "no JSON": ("{", "not JSON"),
    "no object": ("[1]", "either text or input_ids"),
    "neither": ({"words": "a"}, "either text or input_ids"),
    "both": ({"text": "a", "input_ids": [1]}, "either text or input_ids"),
    "no tokenizer": ({"text": "a"}, "has none that can be read"),
    "text is a number": ({"text": 3}, "text is int"),
    "no list": ({"input_ids": "1 2"}, "no list of integers"),
    "no ids": ({"input_ids": []}, "no list of integers"),
    "bool": ({"input_ids": [True]}, "no list of integers"),
    "beyond the vocabulary": ({"input_ids": [128]}, "not in the vocabulary of 128"),
    "negative": ({"input_ids": [-1]}, "not in the vocabulary of 128"),
    "too long": ({"input_ids": [1] * 257}, "257 tokens, and the model 256 positions"),
}


@pytest.mark.parametrize("row, words", BAD.values(), ids=BAD)
def test_a_bad_row_is_refused_by_file_and_line(llama, tmp_path, row, words):
    file = written(tmp_path / "data.jsonl", {"input_ids": [1]}, "", row)
    with pytest.raises(BadInput, match=words) as refused:
        given(llama[0], file)
    assert refused.value.where == f"{file}, line 3" and refused.value.exit_code == 5


def test_what_tells_modalities_has_to_be_there_and_tokens_need_one(llama, tmp_path):
    kinds = ModelPlan(Modality(("text", "image"), "kind", ((), ((1, 1),)), ("", ""), "text"))
    for row, words in (({}, "it has no kind"), ({"kind": [1]}, "kind has 1 entries for 2 tokens")):
        with pytest.raises(BadInput, match=words):
            given(llama[0], written(tmp_path / "data.jsonl", {"input_ids": [1, 2]} | row), kinds)
    strict = ModelPlan(Modality(("text", "image"), "input_ids", (((0, 9),), ((100, 127),)), ("", "")))
    with pytest.raises(BadInput, match="a token of no modality"):
        given(llama[0], written(tmp_path / "data.jsonl", {"input_ids": [1, 50]}), strict)


@pytest.mark.parametrize("content, words", [(None, "not readable"), ("\n", "no rows")])
def test_a_file_without_rows_is_refused(llama, tmp_path, content, words):
    if content is not None:
        (tmp_path / "data.jsonl").write_text(content)
    with pytest.raises(BadInput, match=words):
        given(llama[0], str(tmp_path / "data.jsonl"))


def test_images_are_random_and_said_to_be(checkpoint, tmp_path):
    with opened(str(checkpoint("vit")), UpcycleOptions()) as dense:
        data = given(dense, "")
        assert data.rows[0]["pixel_values"].shape == (1, 3, 32, 32) and "random images" in data.notes[0]
        with pytest.raises(Usage, match="the model reads images"):
            given(dense, written(tmp_path / "data.jsonl", {"input_ids": [1]}))


def test_random_tokens_are_said_to_be_random(llama):
    data = given(llama[0], "", PLAN)
    assert len(data.rows) == 64 and "random tokens" in data.notes[0]
    assert not torch.equal(data.rows[0]["input_ids"], data.rows[1]["input_ids"])


def test_text_is_read_by_the_tokenizer_of_the_source(llama, tmp_path):
    source = shutil.copytree(llama[0].source.directory, tmp_path / "source")
    for file in DIGITS.glob("tokenizer*"):
        shutil.copy(file, source)
    file = written(tmp_path / "data.jsonl", {"text": "a thin seven", "note": "not read"})
    rows = data_for(open_source(str(source)), llama[0].traced.interface, file, 0).rows
    assert rows[0]["input_ids"].shape == (1, 3) and rows[0]["attention_mask"].tolist() == [[1, 1, 1]]


def test_a_block_sees_what_the_model_gives_it(llama, tmp_path):
    """Every token once, in order, with its modality; the same as a run of the whole by hand."""
    dense, reference = llama
    data = given(dense, written(tmp_path / "data.jsonl", *({"input_ids": ids} for ids in ROWS)), PLAN)
    names = [block.enter for block in dense.blocks]
    seen = capture(reference, data, names, GROUPS)
    by_hand: list[torch.Tensor] = []
    hook = reference.model.model.layers[1].mlp.register_forward_pre_hook(lambda m, args: by_hand.append(args[0][0]))
    with torch.no_grad():
        for ids in ROWS:
            reference.model(torch.tensor([ids]))
    hook.remove()
    last = seen["model.layers.1.mlp"]
    assert torch.equal(last.x, torch.cat(by_hand))
    assert last.modality is not None and last.modality.tolist() == [0, 0, 0, 1, 0, 1, 0, 0, 1, 1]
    assert len(last.of(1)) == 4 and not reference.model.model.layers[1].mlp._forward_pre_hooks


def test_a_sample_is_of_the_same_tokens_in_every_block_and_by_seed(llama):
    dense, reference = llama
    data, names = given(dense, ""), [block.enter for block in dense.blocks]
    whole = capture(reference, data, names, limit=10**6)[names[1]].x
    one, again, other = (capture(reference, data, names, limit=100, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one[names[1]].x, again[names[1]].x) and not torch.equal(one[names[1]].x, other[names[1]].x)
    at = [int((whole == x).all(1).nonzero()[0]) for x in one[names[1]].x]
    assert len(set(at)) == 100 and at == sorted(at)
    assert at[0] < len(whole) // 10 and at[-1] > len(whole) * 9 // 10


def test_usage_is_the_share_of_weight(llama, upcycled):
    source, interface = open_source(str(upcycled("llama", top_k=2))), llama[0].traced.interface
    shares = usage(Reference.load(source, interface), data_for(source, interface, "", 0, source.plan))
    assert set(shares) == {"model.layers.0.mlp.experts", "model.layers.1.mlp.experts"}
    for share in shares.values():
        assert share.shape == (4,) and float(share.sum()) == pytest.approx(1) and float(share.min()) > 0


def test_hidden_rows_send_tokens_that_are_alike_to_one_expert(llama, tmp_path):
    """Rows of logits of size one, that differ between groups, and that keep the function."""
    dense, _ = llama
    options = UpcycleOptions(groups="text=2,image=2", modality=("image=100..127",), router_init="hidden")
    receipt = upcycle(str(dense.source.directory), tmp_path / "moe", options)
    assert receipt.preserved and receipt.moved is not None and receipt.moved <= 1e-5
    assert "random tokens" in receipt.notes[0]
    model = load(tmp_path / "moe")
    ids = torch.arange(128)[None]
    with torch.no_grad():
        model(ids)
    for layer in model.model.layers:
        logits = layer.mlp.logits
        for tokens, experts in ((range(100), (0, 1)), (range(100, 128), (2, 3))):
            own = logits[list(tokens)][:, list(experts)]
            assert 0.3 < float(own.std()) < 3
            assert 0.1 < float((own[:, 0] > own[:, 1]).float().mean()) < 0.9


def test_too_few_tokens_of_a_group_are_refused(llama, tmp_path):
    file = written(tmp_path / "data.jsonl", {"input_ids": [1, 2, 3, 100]})
    options = UpcycleOptions(
        groups="text=2,image=2", modality=("image=100..127",), router_init="hidden", calibration=file, parity="off"
    )
    with pytest.raises(BadInput, match=r"1 tokens of image came to model.layers.0.mlp, too few for 2 experts"):
        upcycle(str(llama[0].source.directory), tmp_path / "moe", options)
    assert not (tmp_path / "moe").exists()


def test_data_that_nothing_reads_is_refused(llama, tmp_path):
    with pytest.raises(Usage, match="--calibration is for --router-init hidden"):
        upcycle(str(llama[0].source.directory), tmp_path / "moe", UpcycleOptions(calibration="data.jsonl"))


def test_a_sample_is_the_same_however_it_came():
    """Of tokens in one call or in many, with places that were given up in between."""
    x, modality = torch.randn(500, 8), torch.arange(500) % 3
    whole, parts = Sample(64, 5), Sample(64, 5)
    whole.add(x, modality)
    for part in torch.arange(500).split([1, 99, 3, 397]):
        parts.add(x[part], modality[part])
    one, other = whole.seen, parts.seen
    assert one is not None and other is not None and one.modality is not None and other.modality is not None
    assert torch.equal(one.x, other.x) and torch.equal(one.modality, other.modality)
    places = (x[:, None] == one.x).all(-1).nonzero()[:, 0]
    assert len(places) == 64 and torch.equal(modality[places], one.modality)
