"""Usage of experts: counts beside transformers' own router logits, planted dead and duplicate experts, costs of pruning."""

import json

import pytest
import torch

from mocomp.calibration import usage as counting
from mocomp.calibration.usage import concentration
from mocomp.commands.prune import PruneOptions, prune
from mocomp.commands.usage import UsageOptions, usage
from mocomp.errors import BadInput, Unsupported, Usage
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import results
from mocomp.report.usage import NONE, SHADES, Duplicates, LayerUsage, UsageReport, heat_map, print_usage
from tests.planted_experts import ROWS, dead_row, eager, edited, inputs_of, logits_of, written

IMAGES = ("image=64..127",)
LAYER = "model.layers.{}.mlp.experts"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(written(tmp_path_factory.mktemp("data") / "rows.jsonl"))


@pytest.fixture(scope="module")
def qwen(checkpoint, data):
    """The report of a small mixture whose ids from 64 on are images."""
    return usage(str(checkpoint("qwen3_moe")), UsageOptions(data=data, modality=IMAGES))


def routed_by_hand(directory, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """ids [T, 2], weights [T, 2] of a layer of Qwen3-MoE, from its class's own router logits."""
    model, found = eager(directory), []
    for row in ROWS:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row]), output_router_logits=True).router_logits[layer]
        found.append(logits.softmax(-1).topk(2))
    weights, ids = (torch.cat([f[i] for f in found]) for i in (0, 1))
    return ids, weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize("layer", [0, 1])
def test_counts_are_those_of_the_class_itself(checkpoint, qwen, layer):
    ids, weights = routed_by_hand(checkpoint("qwen3_moe"), layer)
    is_image = torch.tensor(ROWS).flatten() >= 64
    found = qwen.layers[layer]
    assert (found.layer, found.experts, found.chosen, qwen.tokens) == (LAYER.format(layer), 8, 2, 60)
    for name, own in (("text", ~is_image), ("image", is_image)):
        tokens = torch.bincount(ids[own].flatten(), minlength=8)
        share = torch.zeros(8).index_add_(0, ids[own].flatten(), weights[own].flatten()) / own.sum()
        assert found.tokens[name] == tokens.tolist()
        assert found.share[name] == pytest.approx(share.tolist(), abs=1e-6)
        assert found.concentration[name].top == pytest.approx(float(share.topk(2).values.sum()), abs=1e-6)


def test_the_report_is_the_json_that_was_agreed(qwen):
    found = json.loads(json.dumps(qwen.as_json()))
    assert found["modalities"] == ["text", "image"] and found["tokens"] == 60
    layer = found["layers"][0]
    assert layer.keys() >= {"layer", "experts", "chosen", "tokens", "share", "dead", "duplicates", "concentration"}
    assert set(layer["concentration"]["text"]) == {"entropy", "gini", "top"}
    assert all(sum(layer["share"][name]) == pytest.approx(1) for name in ("text", "image"))
    assert [p["experts"] for p in found["pruning"]] == [6, 4]
    assert all(p.keys() >= {"experts", "bytes_saved", "error", "moved"} for p in found["pruning"])


def test_a_planted_dead_expert_is_named_and_no_other(checkpoint, tmp_path, data):
    planted = dead_row(checkpoint("qwen3_moe"), tmp_path / "planted", "model.layers.1.mlp.gate.weight", "model.layers.1.mlp", 5)
    before, after = (usage(str(path), UsageOptions(data=data)).layers[1].dead for path in (checkpoint("qwen3_moe"), planted))
    assert before == [] and after == [5]


def twin(factor: float):
    """Expert 6 becomes expert 2 with its hidden units in another order, times a factor."""
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))

    def edit(tensors):
        block = "model.layers.0.mlp.experts."
        for part in ("gate_proj", "up_proj"):
            tensors[f"{block}6.{part}.weight"] = tensors[f"{block}2.{part}.weight"][order]
        tensors[f"{block}6.down_proj.weight"] = factor * tensors[f"{block}2.down_proj.weight"][:, order]

    return edit


@pytest.mark.parametrize("factor, expected", [(1.0, [[2, 6]]), (1.0005, [[2, 6]]), (1.01, [])])
def test_experts_that_compute_the_same_are_found_by_what_they_give(checkpoint, tmp_path, data, factor, expected):
    planted = edited(checkpoint("qwen3_moe"), tmp_path / "planted", twin(factor))
    first, second = usage(str(planted), UsageOptions(data=data)).layers
    assert [pair.experts for pair in first.duplicates] == expected and second.duplicates == []
    assert all(pair.error == pytest.approx(factor - 1, abs=1e-5) for pair in first.duplicates)


@pytest.mark.parametrize("family, block", [("qwen3_moe", "mlp"), ("olmoe", "mlp"), ("gpt_oss", "mlp"), ("phimoe", "mlp")])
def test_what_pruning_would_cost_is_what_the_pruned_block_costs(checkpoint, tmp_path, data, family, block):
    """The first layer of the pruned checkpoint, run by transformers on the tokens that came to the original's."""
    source, name = checkpoint(family), f"model.layers.0.{block}"
    predicted = usage(str(source), UsageOptions(data=data)).pruning[1]
    prune(str(source), tmp_path / "out", PruneOptions(experts=4, data=data, parity="off"))
    before, after = eager(source), eager(tmp_path / "out")
    x = inputs_of(before, name, ROWS)[None]
    with torch.no_grad():
        a, b = (run[0] if isinstance(run := model.get_submodule(name)(x), tuple) else run for model in (before, after))
    assert predicted.layers[f"{name}.experts"] == pytest.approx(float((a - b).norm() / a.norm()), rel=1e-4)
    whole, left = ((directory / "model.safetensors").stat().st_size for directory in (source, tmp_path / "out"))
    assert predicted.bytes_saved == pytest.approx(whole - left, abs=6000)  # headers are no weights


def test_groups_of_ours_have_their_modality_from_the_checkpoint(upcycled, tmp_path):
    made = upcycled("llama", groups="text=3,image=2", modality=("image=100..127",), top_k=2, router="softmax_topk")
    data = str(written(tmp_path / "rows.jsonl", [[1, 2, 3, 100, 101]]))
    report = usage(str(made), UsageOptions(data=data))
    for layer in report.layers:
        assert layer.layer.endswith("mlp.experts") and layer.experts == 5
        assert sum(layer.tokens["text"][:3]) == 6 and not any(layer.tokens["text"][3:])
        assert layer.tokens["image"] == [0, 0, 0, 2, 2]
        assert layer.share["image"][3:] == pytest.approx([0.5, 0.5], abs=0.5) and layer.concentration["image"].top == 1
    with pytest.raises(Usage, match="says itself"):
        usage(str(made), UsageOptions(data=data, modality=IMAGES))


def test_pools_of_a_class_are_modalities(checkpoint):
    report = usage(str(checkpoint("ernie4_5_vl_moe")), UsageOptions())
    (layer,) = report.layers
    assert report.modalities == ["text", "image"] and report.pruning == []
    assert not any(layer.tokens["text"][4:]) and not any(layer.tokens["image"][:4])
    assert sum(map(sum, layer.tokens.values())) == 2 * report.tokens
    assert any("no costs of pruning" in note for note in report.notes)
    assert layer.concentration["text"].entropy > 0.9  # of the four that text reaches


def test_an_artifact_keeps_what_was_found_of_its_source(checkpoint, tmp_path, data):
    convert(str(checkpoint("qwen3_moe")), tmp_path / "artifact", ConvertOptions(parity="off"))
    report = usage(str(tmp_path / "artifact"), UsageOptions(data=data))
    assert results.load(tmp_path / "artifact", results.USAGE) == json.loads(json.dumps(report.as_json()))
    assert report.source == str(checkpoint("qwen3_moe").resolve())


def test_a_model_without_experts_and_a_file_that_cannot_be_are_refused(checkpoint, tmp_path, data):
    with pytest.raises(Unsupported, match="no mixture of experts"):
        usage(str(checkpoint("llama")), UsageOptions(data=data))
    with pytest.raises(BadInput, match="path of a file"):
        usage(str(checkpoint("qwen3_moe")), UsageOptions(), tmp_path)
    with pytest.raises(Usage, match="--otherwise without --modality"):
        usage(str(checkpoint("qwen3_moe")), UsageOptions(otherwise="text"))


def test_concentration_of_spreads_that_are_known():
    even, single, two = (concentration(torch.tensor(s), 2) for s in ([0.25] * 4, [0.0, 0.0, 1.0, 0.0], [0.5, 0.5, 0.0, 0.0]))
    assert (even.entropy, even.gini, even.top) == pytest.approx((1, 0, 0.5))
    assert (single.entropy, single.gini, single.top) == pytest.approx((0, 0.75, 1))
    assert (two.entropy, two.gini, two.top) == pytest.approx((0.5, 0.5, 1))


def test_a_heat_map_tells_none_from_few():
    cells = heat_map([0, 1, 5, 9], [0.0, 0.001, 0.4, 0.599])
    assert "".join(cell.plain for cell in cells) == NONE + SHADES[0] + SHADES[5] + SHADES[-1]


def test_a_map_of_many_experts_is_cut_and_whole(capsys):
    tokens, spread = {"all": [0] * 99 + [1]}, {"all": concentration(torch.tensor([0.0] * 99 + [1.0]), 1)}
    layer = LayerUsage("layer", 100, 1, tokens, {"all": [0.0] * 99 + [1.0]}, list(range(99)), spread)
    print_usage(UsageReport("source", "data", 1, ["all"], [layer]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:4] == ["layer", NONE * 64, "100", "1"]
    assert lines[3].split() == ["experts", "from", "64", NONE * 35 + SHADES[-1]]
    assert any("and 83 more" in text for text in lines)


def test_duplicates_are_told_as_sets(capsys):
    spread = {"all": concentration(torch.tensor([0.2] * 5), 1)}
    pairs = [Duplicates(pair, error) for pair, error in (([0, 1], 1e-6), ([2, 4], 3e-4), ([1, 3], 2e-6))]
    layer = LayerUsage("layer", 5, 1, {"all": [1] * 5}, {"all": [0.2] * 5}, [], spread, pairs)
    print_usage(UsageReport("source", "data", 5, ["all"], [layer]))
    told = [text.strip() for text in capsys.readouterr().out.splitlines() if "compute the same" in text]
    assert told == [
        f"compute the same: layer: {e} (outputs differ by {d})" for e, d in (("2, 4", "3.0e-04"), ("0, 1, 3", "2.0e-06"))
    ]


def test_a_model_moved_is_seen_where_it_moved(checkpoint, tmp_path, data):
    """The proof of pruning, beside the logits of transformers."""
    source = checkpoint("qwen3_moe")
    receipt = prune(str(source), tmp_path / "out", PruneOptions(experts=7, data=data))
    pairs = list(zip(*(logits_of(eager(path), ROWS) for path in (source, tmp_path / "out")), strict=True))
    assert receipt.moved == pytest.approx(max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs), rel=1e-4)
    kls = [(a.log_softmax(-1).exp() * (a.log_softmax(-1) - b.log_softmax(-1))).sum(-1) for a, b in pairs]
    assert receipt.kl == pytest.approx(float(torch.cat(kls).mean()), rel=1e-4)
    assert receipt.tokens == f"60 tokens of {data}" and counting.SAMPLE > 60
