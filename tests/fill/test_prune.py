"""Pruning: which experts stay, what is written, and what the receipt says of it, beside transformers."""

import dataclasses
import json
import shutil
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mocomp.calibration.usage import Counted
from mocomp.commands import prune as pruning
from mocomp.commands.prune import PruneOptions, prune
from mocomp.errors import BadInput, Unsupported, Usage
from mocomp.fill import prune as filling
from mocomp.nn.model import load
from mocomp.report import RECEIPT
from tests.planted_experts import NEVER, ROWS, dead_row, eager, edited, inputs_of, logits_of, written

STOCK = [
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "phimoe", "gpt_oss", "glm4_moe", "ernie4_5_moe", "deepseek_v3",
]  # fmt: skip
TWO_LAYERS = {"gpt_oss": {}, "glm4_moe": {}, "ernie4_5_moe": {}, "deepseek_v3": {"experts": 16}}
"""Those whose layers differ; of four groups of four experts some can go."""
ONE = {"num_hidden_layers": 1}
BIASES = {
    "glm4_moe": "model.layers.1.mlp.gate.e_score_correction_bias",
    "ernie4_5_moe": "model.layers.1.mlp.moe_statics.e_score_correction_bias",
    "gpt_oss": "model.layers.1.mlp.router.bias",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(written(tmp_path_factory.mktemp("data") / "rows.jsonl"))


def apart(one, other) -> float:
    """The largest relative difference of two models' logits on the rows."""
    pairs = zip(logits_of(one, ROWS), logits_of(other, ROWS), strict=True)
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


@pytest.mark.parametrize("family", STOCK)
def test_a_class_of_transformers_stays_one_with_fewer_experts(checkpoint, tmp_path, data, family):
    source = checkpoint(family, **TWO_LAYERS.get(family, ONE))
    before = TWO_LAYERS.get(family, {}).get("experts", 8)
    receipt = prune(str(source), tmp_path / "out", PruneOptions(experts=before // 2, data=data))
    original, result = eager(source), eager(tmp_path / "out")
    assert type(result) is type(original) and receipt.loads_as == f"transformers.{type(result).__name__}"
    assert receipt.experts == before // 2 * receipt.mixtures and receipt.parameters == sum(p.numel() for p in _stored(result))
    assert receipt.moved == pytest.approx(apart(original, result), rel=1e-3) and "went to experts" in receipt.changes
    told = json.loads((tmp_path / "out" / RECEIPT).read_text())
    assert told.pop("files") and told.pop("sha256")  # known when all else is written
    assert told == json.loads(json.dumps(dataclasses.asdict(receipt)))


def _stored(model) -> list[torch.Tensor]:
    return [*model.parameters(), *(b for n, b in model.named_buffers() if n.endswith("correction_bias"))]


def test_what_stays_is_bit_for_bit_what_was_there(checkpoint, tmp_path, data):
    receipt = prune(str(checkpoint("qwen3_moe")), tmp_path / "out", PruneOptions(experts=5, data=data))
    before, after = (load_file(d / "model.safetensors") for d in (checkpoint("qwen3_moe"), tmp_path / "out"))
    told = [note for note in receipt.notes if "is without" in note]
    for layer, note in enumerate(told):
        block, gone = f"model.layers.{layer}.mlp.", {int(e) for e in note.split("without ")[1].split(", ")}
        stays = [e for e in range(8) if e not in gone]
        assert torch.equal(after[f"{block}gate.weight"], before[f"{block}gate.weight"][stays])
        for part in ("gate_proj", "up_proj", "down_proj"):
            for new, old in enumerate(stays):
                assert torch.equal(after[f"{block}experts.{new}.{part}.weight"], before[f"{block}experts.{old}.{part}.weight"])
    others = [name for name in before if "experts" not in name and "gate.weight" not in name]
    assert len(told) == 2 and all(torch.equal(before[name], after[name]) for name in others)
    assert sum("experts" in name for name in after) == 2 * 5 * 3


def biased(checkpoint, tmp_path, family: str, *experts: int):
    """A checkpoint in which a bias keeps some experts of the last layer from ever being chosen."""

    def edit(tensors):
        tensors[BIASES[family]].view(-1)[list(experts)] = -1e4

    return edited(checkpoint(family), tmp_path / "planted", edit)


@pytest.mark.parametrize("family", ["glm4_moe", "gpt_oss"])
def test_without_its_dead_experts_a_model_is_the_same(checkpoint, tmp_path, data, family):
    planted = biased(checkpoint, tmp_path, family, 2, 5)
    receipt = prune(str(planted), tmp_path / "out", PruneOptions(dead=True, data=data))
    assert receipt.preserved and receipt.moved is not None and receipt.moved < 1e-6 and receipt.tokens == f"60 tokens of {data}"
    assert any("layers.1" in note and note.endswith("is without 2, 5") for note in receipt.notes)
    result = eager(tmp_path / "out") if receipt.loads_as.startswith("transformers") else load(tmp_path / "out")
    assert apart(eager(planted), result) < 1e-6


def test_a_class_keeps_every_living_expert_where_layers_differ(checkpoint, tmp_path, data):
    """One is dead in the second layer alone, so the class has to keep it; a checkpoint of ours need not."""
    source = checkpoint("qwen3_moe")
    planted = dead_row(source, tmp_path / "planted", "model.layers.1.mlp.gate.weight", "model.layers.1.mlp", 5)
    x = inputs_of(eager(planted), "model.layers.1.mlp", ROWS)
    gate = load_file(planted / "model.safetensors")["model.layers.1.mlp.gate.weight"]
    assert float((x @ gate[5]).max()) < NEVER / 2
    ours = prune(str(planted), tmp_path / "ours", PruneOptions(dead=True, data=data))
    assert ours.preserved and ours.loads_as == "mocomp.nn.load" and ours.experts == 15
    assert any("layers keep 8, 7 experts" in note for note in ours.notes)
    assert apart(eager(planted), load(tmp_path / "ours")) < 1e-6
    with pytest.raises(Usage, match="none is dead"):
        prune(str(planted), tmp_path / "out", PruneOptions(dead=True, data=data, layout="stock"))
    again = dead_row(planted, tmp_path / "both", "model.layers.0.mlp.gate.weight", "model.layers.0.mlp", 1)
    again = dead_row(again, tmp_path / "all", "model.layers.1.mlp.gate.weight", "model.layers.1.mlp", 5)
    stock = prune(str(again), tmp_path / "out", PruneOptions(dead=True, data=data))
    assert stock.preserved and stock.loads_as == "transformers.Qwen3MoeForCausalLM" and stock.experts == 14
    assert apart(eager(again), eager(tmp_path / "out")) < 1e-6


def test_a_softmax_over_all_experts_misses_even_dead_ones(checkpoint, tmp_path, data):
    """OLMoE: the weights are shares of all experts; an expert of no tokens still has a share, if it is not a tiny one."""
    source = checkpoint("olmoe", **ONE)
    x = inputs_of(eager(source), "model.layers.0.mlp", ROWS)

    def edit(tensors):
        logits = x @ tensors["model.layers.0.mlp.gate.weight"].T
        third = logits.topk(3).values[:, 2] - 0.5  # never chosen, and never far from it
        tensors["model.layers.0.mlp.gate.weight"][5] = torch.linalg.lstsq(x, third, driver="gelsd").solution

    planted = edited(source, tmp_path / "planted", edit)
    receipt = prune(str(planted), tmp_path / "out", PruneOptions(dead=True, data=data))
    assert receipt.moved is not None and receipt.moved > 1e-3 and receipt.experts == 7
    assert receipt.changes == "no token chose what was removed, but the router reckons with all of its experts"
    assert receipt.moved == pytest.approx(apart(eager(planted), eager(tmp_path / "out")), rel=1e-3)


def test_a_bias_beside_a_softmax_weighs_more_among_fewer(checkpoint, tmp_path, data):
    """ERNIE 4.5: what is chosen is the largest softmax plus bias, and without dead experts the softmax is larger."""
    planted = biased(checkpoint, tmp_path, "ernie4_5_moe", 2, 5)
    receipt = prune(str(planted), tmp_path / "out", PruneOptions(dead=True, data=data))
    assert receipt.moved is not None and receipt.moved > 1e-3
    assert receipt.moved == pytest.approx(apart(eager(planted), eager(tmp_path / "out")), rel=1e-3)
    assert receipt.experts == 6 and "no token chose what was removed" in receipt.changes


def test_a_living_expert_that_is_dropped_as_dead_is_told(checkpoint, tmp_path, data, monkeypatch):
    planted, whole = biased(checkpoint, tmp_path, "glm4_moe", 2), Counted.dead.fget
    assert whole is not None
    monkeypatch.setattr(Counted, "dead", property(lambda self: [*whole(self), 0]))
    receipt = prune(str(planted), tmp_path / "out", PruneOptions(dead=True, data=data))
    assert not receipt.preserved and receipt.moved is not None and receipt.moved > 1e-3
    assert "went to experts that were removed" in receipt.changes


@pytest.mark.parametrize("family", ["glm4_moe", "gpt_oss"])
def test_a_bias_that_does_not_go_along_is_told(checkpoint, tmp_path, data, monkeypatch, family):
    planted, slices = biased(checkpoint, tmp_path, family, 2), filling._sliced

    def forgetful(leaf, found, kept):
        return slices(leaf, found, list(range(len(kept))) if leaf.name == BIASES[family] else kept)

    monkeypatch.setattr(filling, "_sliced", forgetful)
    options = PruneOptions(experts=7, data=data, by="usage")
    monkeypatch.setattr(Counted, "share", property(lambda self: (torch.arange(8) != 2)[None].double()))
    receipt = prune(str(planted), tmp_path / "out", options)
    assert receipt.moved is not None and receipt.moved > 1e-3 and not receipt.preserved


@pytest.mark.parametrize("by", ["usage", "router_norm", "output_error"])
def test_the_expert_that_goes_is_the_one_that_it_should_be(checkpoint, tmp_path, data, by):
    """One layer, so that a brute-force search over real pruned checkpoints knows the best."""
    source = checkpoint("qwen3_moe", **ONE)
    receipt = prune(str(source), tmp_path / "out", PruneOptions(experts=7, by=by, data=data))
    (note,) = (note for note in receipt.notes if "is without" in note)
    gate = load_file(source / "model.safetensors")["model.layers.0.mlp.gate.weight"]
    model = eager(source)
    x = inputs_of(model, "model.layers.0.mlp", ROWS)
    weights, ids = (x @ gate.T).softmax(-1).topk(2)
    share = torch.zeros(8).index_add_(0, ids.flatten(), (weights / weights.sum(-1, keepdim=True)).flatten())
    with torch.no_grad():
        block: Any = model.get_submodule("model.layers.0.mlp")
        whole, errors = block(x[None]), []
        for e in range(8):
            masked = (x @ gate.T).index_fill(1, torch.tensor([e]), float("-inf")).softmax(-1).topk(2)
            y = block.experts(x, masked.indices, masked.values / masked.values.sum(-1, keepdim=True))
            errors.append(float((y - whole[0]).norm()))
    best = {"usage": share, "router_norm": gate.norm(dim=1), "output_error": torch.tensor(errors)}[by]
    assert note.endswith(f"is without {int(best.argmin())}")


@pytest.mark.parametrize("layout", ["stock", "mocomp"])
def test_a_budget_is_kept_and_used(checkpoint, tmp_path, data, layout):
    source = checkpoint("qwen3_moe")
    whole = sum(t.nbytes for t in load_file(source / "model.safetensors").values())
    expert = 3 * 48 * 64 * 4 + 64 * 4
    budget = whole - 5 * expert
    options = PruneOptions(budget=f"{budget}B", data=data, layout=layout, parity="off")
    receipt = prune(str(source), tmp_path / "out", options)
    left = sum(t.nbytes for t in load_file(tmp_path / "out" / "model.safetensors").values())
    # a class drops as many in both layers; a checkpoint of ours has a router of its own beside the class's
    assert left <= budget < left + (2 * expert if layout == "stock" else expert)
    assert receipt.experts == (10 if layout == "stock" else 16 - 6)


def test_groups_of_ours_keep_theirs(upcycled, tmp_path):
    made = upcycled("llama", groups="text=3,image=4", modality=("image=64..127",), top_k=2, router_init="random")
    data = str(written(tmp_path / "rows.jsonl"))
    receipt = prune(str(made), tmp_path / "out", PruneOptions(experts=3, data=data))
    result = load(tmp_path / "out")
    assert all(m.groups == (("text", 3), ("image", 3)) for m in result.mocomp_plan.mixtures)
    assert receipt.experts == 12 and receipt.preserved  # copies of one block, so that none is missed
    untouched = prune(str(made), tmp_path / "one", PruneOptions(experts=3, data=data, layers="0"))
    assert [m["groups"][1][1] for m in untouched.plan["mixtures"]] == [3, 4]  # type: ignore[index]
    with pytest.raises(Unsupported, match=r"its mixtures are of mocomp\.nn"):
        prune(str(made), tmp_path / "none", PruneOptions(experts=3, data=data, layout="stock"))


def test_what_cannot_be_is_refused_and_nothing_is_left(checkpoint, tmp_path, data):
    source = str(checkpoint("qwen3_moe", **ONE))
    for options, reason in (
        (PruneOptions(data=data), "what is to go"),
        (PruneOptions(data=data, experts=4, dead=True), "what is to go"),
        (PruneOptions(data=data, experts=8), "no expert would go"),
        (PruneOptions(data=data, experts=1), "has to have 2 to choose from"),
        (PruneOptions(data=data, budget="1KB"), "the budget is less"),
        (PruneOptions(data=data, experts=4, by="router_norm", parity="off"), "nothing is run"),
    ):
        with pytest.raises(Usage, match=reason):
            prune(source, tmp_path / "out", options)
    with pytest.raises(Unsupported, match="same number of experts in all layers"):
        prune(str(checkpoint("qwen3_moe")), tmp_path / "out", PruneOptions(experts=4, layers="0", layout="stock", data=data))
    with pytest.raises(Unsupported, match="no mixtures that can be pruned"):
        prune(str(checkpoint("llama", **ONE)), tmp_path / "out", PruneOptions(experts=4, data=data))
    broken = tmp_path / "broken"
    shutil.copytree(source, broken)
    (broken / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(BadInput, match="damaged"):
        prune(str(broken), tmp_path / "out", PruneOptions(experts=4, data=data))
    assert not (tmp_path / "out").exists() and pruning.PRESERVED == 1e-5
