"""Extending: old tokens do not notice new experts, as modules and as artifacts, and what would make them notice is caught."""

import json
from contextlib import ExitStack

import numpy as np
import pytest
import torch

from mocomp import nn
from mocomp.commands.extend import additions, dense_blocks, extend, old_tokens, opened_mixtures
from mocomp.commands.parity import parity
from mocomp.commands.upcycle import upcycle
from mocomp.errors import ParityFailed, Unsupported, Usage
from mocomp.fill.extend import Extend
from mocomp.models.source import open_source
from mocomp.options import ConvertOptions, ExtendOptions, UpcycleOptions
from mocomp.pipeline import convert
from mocomp.plans.plan import MixturePlan
from mocomp.targets.onnxruntime import OnnxRuntime
from mocomp.verify.inputs import arrays, cases
from mocomp.verify.measures import relative_error
from mocomp.verify.reference import Reference
from mocomp.weights.checkpoint import Checkpoint

AUDIO = {"groups": "audio=4", "modality": ("audio=100..127",)}
PLAIN = {"n_group": 1, "topk_group": 1}
CONVERTED = ("mixtral", "qwen3_moe", "gpt_oss", "glm4_moe")


def tokens(low: int, high: int, rows: int = 2, length: int = 9) -> torch.Tensor:
    return torch.randint(low, high, (rows, length), generator=torch.Generator().manual_seed(0))


def logits(model, ids: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=ids).logits.numpy()


def stock_model(directory):
    source = open_source(str(directory))
    return source.model_class.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


@pytest.fixture(scope="module")
def moma(checkpoint, tmp_path_factory):
    """A llama with experts for text and images, no two alike."""
    place = tmp_path_factory.mktemp("moma") / "moma"
    given = UpcycleOptions(groups="text=4,image=2", modality=("image=80..99",), top_k=2, noise=0.1, parity="off")
    upcycle(str(checkpoint("llama")), place, given)
    return place


@pytest.mark.parametrize("family", CONVERTED)
def test_old_tokens_do_not_notice(checkpoint, tmp_path, family):
    receipt = extend(str(checkpoint(family)), tmp_path / "moe", ExtendOptions(**AUDIO, router_init="copy"))
    assert receipt.preserved and receipt.moved <= 1e-5 and receipt.tokens == "tokens that are not audio"
    report = convert(str(tmp_path / "moe"), tmp_path / "out", ConvertOptions())
    assert report.parity.passed and len(report.artifact.mixtures) == len(receipt.plan["mixtures"])
    # the artifact, and the model that it all began with
    reference = Reference.load(open_source(str(checkpoint(family))), report.interface)
    runner, worst = OnnxRuntime().open(tmp_path / "out"), 0.0
    for case in cases(report.interface, 64):
        given = arrays(report.interface, case, seed=1)
        given["input_ids"] %= 100
        if not case.past:
            empty = {n: np.zeros((case.batch, *_past(report, n)), np.float32) for n in runner.inputs if n not in given}
            worst = max(worst, _error(runner.run(given | empty)["logits"], reference.observe(case, given), given))
    assert 0 < worst <= 1e-5


@pytest.mark.parametrize(("family", "changes"), [("deepseek_v3", PLAIN), ("phimoe", {}), ("ernie4_5_moe", {})])
def test_old_tokens_do_not_notice_under_other_routers(checkpoint, tmp_path, family, changes):
    given = ExtendOptions(**AUDIO, router_init="copy")
    assert extend(str(checkpoint(family, **changes)), tmp_path / "moe", given).moved <= 1e-5


def _past(report, name: str) -> tuple[int, int, int]:
    heads, key, value = report.interface.past[int(name.split(".")[1])]
    return heads, 0, key if name.endswith("key") else value


def _error(actual: np.ndarray, seen, given: dict) -> float:
    whole = given["attention_mask"].astype(bool)
    return relative_error(actual[whole], seen.outputs["logits"][whole])


def test_new_tokens_go_to_new_experts(checkpoint, tmp_path):
    extend(str(checkpoint("mixtral")), tmp_path / "moe", ExtendOptions(**AUDIO))
    model = nn.load(tmp_path / "moe")
    mixture = model.get_submodule("model.layers.1.mlp.experts")
    logits(model, tokens(100, 128))
    assert (mixture.logits[:, :8] == float("-inf")).all() and mixture.logits[:, 8:].isfinite().all()
    assert torch.equal(mixture.experts.w_in[8:], mixture.experts.w_in[:4])  # copies, in turns


def test_copies_of_all_with_their_rows_change_nothing_at_all(checkpoint, tmp_path):
    """Also for new tokens: they find among copies what they found among the originals."""
    given = ExtendOptions(groups="audio=8", modality=("audio=100..127",), router_init="copy", parity="off")
    extend(str(checkpoint("qwen3_moe")), tmp_path / "moe", given)
    ids = tokens(0, 128)
    assert relative_error(logits(nn.load(tmp_path / "moe"), ids), logits(stock_model(checkpoint("qwen3_moe")), ids)) <= 1e-5


def test_reach_both(checkpoint, tmp_path):
    receipt = extend(str(checkpoint("mixtral")), tmp_path / "moe", ExtendOptions(**AUDIO, reach="both", parity="off"))
    assert receipt.plan["mixtures"][0]["reach"] == (("text",), ("audio", "text"))
    model = nn.load(tmp_path / "moe")
    logits(model, tokens(100, 128))
    assert model.get_submodule("model.layers.0.mlp.experts").logits.isfinite().all()


def test_a_third_group(moma, tmp_path):
    receipt = extend(str(moma), tmp_path / "moe", ExtendOptions(**AUDIO, router_init="copy"))
    assert receipt.preserved and receipt.moved <= 1e-5
    plan = receipt.plan
    assert plan["modality"]["names"] == ("text", "image", "audio") and plan["modality"]["otherwise"] == "text"
    assert plan["mixtures"][0]["groups"] == (("text", 4), ("image", 2), ("audio", 4))
    assert plan["mixtures"][0]["reach"] == (("text",), ("image",), ("audio",))
    report = convert(str(tmp_path / "moe"), tmp_path / "out", ConvertOptions())
    assert report.parity.passed
    # of the extended artifact the dense model's function is not asked, but the first mixture's on its own tokens is
    ids = tokens(0, 100)
    assert relative_error(logits(nn.load(tmp_path / "moe"), ids), logits(nn.load(moma), ids)) <= 1e-5


def test_layers_that_are_not_asked_for_go_on_as_before(moma, checkpoint, tmp_path):
    receipt = extend(str(moma), tmp_path / "ours", ExtendOptions(**AUDIO, layers="1", parity="off"))
    first, second = receipt.plan["mixtures"]
    assert first["groups"] == (("text", 4), ("image", 2)) and first["reach"] == (("text",), ("image",), ("text",))
    assert second["reach"][-1] == ("audio",)
    receipt = extend(str(checkpoint("mixtral")), tmp_path / "stock", ExtendOptions(**AUDIO, layers="1", parity="off"))
    assert [m["enter"] for m in receipt.plan["mixtures"]] == ["model.layers.1.mlp.experts"]
    assert convert(str(tmp_path / "stock"), tmp_path / "out", ConvertOptions()).parity.passed


def test_more_experts_for_a_group_that_is_there(moma, checkpoint, tmp_path):
    receipt = extend(str(moma), tmp_path / "ours", ExtendOptions(experts="image=2"))
    assert receipt.plan["mixtures"][0]["groups"] == (("text", 4), ("image", 4))
    assert "image" in receipt.changes and receipt.moved is not None
    bank, old = Checkpoint(tmp_path / "ours"), Checkpoint(moma)
    name = "model.layers.0.mlp.experts.w_in"
    after, before = bank.recipe(name).evaluate(bank.read), old.recipe(name).evaluate(old.read)
    assert torch.equal(after[[0, 3, 4, 5, 6, 7]], before[[0, 3, 4, 5, 4, 5]])
    receipt = extend(str(checkpoint("mixtral")), tmp_path / "stock", ExtendOptions(experts="4", parity="off"))
    assert receipt.plan["modality"] is None and receipt.plan["mixtures"][0]["groups"] == (("text", 12),)


def test_experts_of_a_dense_model(checkpoint, tmp_path):
    """In float16 on disk, as the new experts' mixture is in float32: numbers are kept, types are the mixture's."""
    dense = checkpoint("llama", dtype=torch.float16, intermediate_size=48)
    receipt = extend(str(checkpoint("mixtral")), tmp_path / "moe", ExtendOptions(**AUDIO, expert=(f"audio={dense}",)))
    assert receipt.preserved and receipt.moved <= 1e-5
    experts = nn.load(tmp_path / "moe").get_submodule("model.layers.1.mlp.experts").experts
    gate = stock_model(dense).get_submodule("model.layers.1.mlp.gate_proj").weight
    assert all(torch.equal(experts.w_in[e, :48], gate) for e in range(8, 12))


def test_beginnings_from_data(checkpoint, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in tokens(90, 128, rows=6).tolist()))
    source = checkpoint("mixtral")
    given = ExtendOptions(**AUDIO, copies="usage", router_init="hidden", calibration=str(file))
    receipt = extend(str(source), tmp_path / "moe", given)
    assert receipt.preserved and receipt.moved <= 1e-5
    model, stock = nn.load(tmp_path / "moe"), stock_model(source)
    counts, rows = torch.zeros(8), []
    experts = stock.get_submodule("model.layers.0.mlp.experts")
    experts.register_forward_pre_hook(lambda _, args: rows.append(args))
    for line in file.read_text().splitlines():
        logits(stock, torch.tensor([json.loads(line)["input_ids"]]))
    for _, ids, weights in rows:
        counts.index_add_(0, ids.reshape(-1), weights.reshape(-1))
    most = counts.argsort(descending=True)[:4]
    mixture = model.get_submodule("model.layers.0.mlp.experts")
    assert torch.equal(mixture.experts.w_in[8:], mixture.experts.w_in[most])
    assert mixture.router.weight[8:].mean(0).abs().max() <= 1e-5  # directions apart, as in upcycling


def test_the_types_of_a_checkpoint_are_kept(checkpoint, tmp_path):
    source = checkpoint("glm4_moe", dtype=torch.bfloat16)
    receipt = extend(str(source), tmp_path / "moe", ExtendOptions(**AUDIO, router_init="copy"))
    assert receipt.moved <= 1e-5
    types = {name: entry.dtype for name, entry in Checkpoint(tmp_path / "moe").entries.items()}
    assert types["model.layers.1.mlp.experts.experts.w_in"] is torch.bfloat16
    before = {name: entry.dtype for name, entry in Checkpoint(source).entries.items()}
    correction = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert types["model.layers.1.mlp.experts.router.correction"] is types[correction] is before[correction]


def test_a_dropped_mask_is_caught(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(MixturePlan, "allowed", lambda self: None)
    with pytest.raises(ParityFailed, match="was to preserve the function"):
        extend(str(checkpoint("mixtral")), tmp_path / "moe", ExtendOptions(**AUDIO, router_init="copy"))
    assert not (tmp_path / "moe").exists()


def test_a_mask_that_the_artifact_lacks_is_caught(checkpoint, tmp_path, monkeypatch):
    extend(str(checkpoint("mixtral")), tmp_path / "moe", ExtendOptions(**AUDIO, router_init="copy", parity="off"))
    monkeypatch.setattr(MixturePlan, "allowed", lambda self: None)
    convert(str(tmp_path / "moe"), tmp_path / "out", ConvertOptions(parity="off"))
    monkeypatch.undo()
    assert not parity(tmp_path / "out").passed


@pytest.fixture(scope="module")
def mixtral(checkpoint):
    with opened_mixtures(str(checkpoint("mixtral")), ExtendOptions()) as moe:
        yield moe


REFUSED = [
    ({"groups": "audio=4"}, "which tokens are audio"),
    ({"groups": "audio=4", "modality": ("audio=100..200",)}, "beyond the vocabulary"),
    ({"groups": "audio=4", "modality": ("audio=0..127",)}, "no token is left"),
    ({"groups": "audio=4", "modality": ("audio=tower:model",)}, "no tower"),
    ({"groups": "audio=1", "modality": ("audio=100..127",)}, "takes 2 experts"),
    ({"groups": "audio=many", "modality": ("audio=100..127",)}, "numbers of experts by group"),
    ({"groups": "text=4", "modality": ("text=100..127",)}, "is there already"),
    ({"experts": "2", "modality": ("audio=100..127",)}, "without a new group"),
    ({"experts": "image=2"}, "the model has text"),
    (AUDIO | {"expert": ("video=nowhere",)}, "which gets no new experts"),
    (AUDIO | {"expert": ("audio",)}, "is not NAME=SOURCE"),
]


@pytest.mark.parametrize(("given", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_cannot_be_meant_is_refused(mixtral, given, words):
    options = ExtendOptions(**given)
    with pytest.raises(Usage, match=words):
        more, fresh, modality = additions(mixtral, options)
        dense_blocks(mixtral, options, [name for name, _ in more], ExitStack())
        old_tokens(modality, fresh, mixtral.traced.interface)
        Extend(more, fresh, rows=lambda found, group, count: torch.zeros(count, 64))(mixtral.blocks[0], {})


def test_a_class_of_transformers_cannot_hold_it(checkpoint, tmp_path):
    with pytest.raises(Unsupported, match="no class has groups of experts"):
        extend(str(checkpoint("mixtral")), tmp_path / "moe", ExtendOptions(**AUDIO, layout="stock"))
    assert not (tmp_path / "moe").exists()


@pytest.mark.parametrize("more", [("audio", 9), ("text", 2)])
def test_copied_rows_that_tie_are_refused(mixtral, more):
    fresh = ("audio",) if more[0] == "audio" else ()
    with pytest.raises(Usage, match="copied rows of the router tie with others"):
        Extend((more,), fresh)(mixtral.blocks[0], {})
    with pytest.raises(Usage, match="tie with others for tokens of audio"):
        Extend((("audio", 2),), ("audio",), also_old=True)(mixtral.blocks[0], {})


def test_nothing_to_add_is_refused(tmp_path):
    with pytest.raises(Usage, match="nothing to add"):
        extend("anything", tmp_path / "moe", ExtendOptions())


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("deepseek_v3", {}, "chooses among groups of experts of one size"),
        ("ernie4_5_vl_moe", {}, "come from where, and not from one product"),
        ("llama", {}, "no mixtures that can be extended"),
    ],
)
def test_mixtures_that_cannot_be_extended_are_refused(checkpoint, tmp_path, family, changes, words):
    with pytest.raises(Unsupported, match=words):
        extend(str(checkpoint(family, **changes)), tmp_path / "moe", ExtendOptions(**AUDIO))


def test_a_dense_model_of_another_width_is_refused(checkpoint, tmp_path):
    with pytest.raises(Unsupported, match=r"the width of model.layers.0.mlp is 96, and that of the experts is 48"):
        extend(str(checkpoint("mixtral")), tmp_path / "moe", ExtendOptions(**AUDIO, expert=(f"audio={checkpoint('llama')}",)))


def test_a_range_that_has_a_modality_is_refused(moma, tmp_path):
    with pytest.raises(Usage, match="90 is both image and audio"):
        extend(str(moma), tmp_path / "moe", ExtendOptions(groups="audio=4", modality=("audio=90..110",)))


def test_the_command(command, checkpoint, tmp_path):
    arguments = ("--groups", "audio=4", "--modality", "audio=100..127", "--top-k", "1")
    assert command("extend", checkpoint("mixtral"), "-o", tmp_path / "moe", *arguments).code == 2  # the router has its k
    done = command("extend", checkpoint("mixtral"), "-o", tmp_path / "moe", *arguments[:4])
    assert done.code == 0 and "function preserved for tokens that are not audio" in done.out
