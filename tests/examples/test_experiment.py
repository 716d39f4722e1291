"""The experiment on modality groups: every variant starts as the dense model, trains, and is reported as measured."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
sys.path.insert(0, str(DIGITS))

import data  # noqa: E402
import experiment  # noqa: E402
import train  # noqa: E402

TINY = train.Recipe(layers=2, hidden=32, heads=2, kv_heads=1, experts=0, expert_hidden=8, steps=12, batch=8, learning_rate=1e-2)
DEPTH = "4 text + 4 image experts, depth"


@pytest.fixture(scope="module")
def tokenizer():
    return data.build_tokenizer()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tokenizer):
    """A few steps of every variant from one tiny dense start."""
    start = experiment.dense_start(0, TINY, tmp_path_factory.mktemp("experiment"), tokenizer)
    short = dataclasses.replace(TINY, steps=4)
    unproven = {name: options and dataclasses.replace(options, parity="off") for name, options in experiment.VARIANTS.items()}
    return {name: experiment.run(start, options, short, tokenizer, every=4) for name, options in unproven.items()}


@pytest.fixture(scope="module")
def results():
    return json.loads(experiment.RESULTS.read_text())


@pytest.mark.parametrize("kind", ["text", "image"])
def test_every_variant_starts_as_the_dense_model_and_goes_its_own_way(runs, kind):
    first, last = ({name: one[kind][at] for name, one in runs.items()} for at in (0, -1))
    assert all(value == pytest.approx(first["dense"], rel=1e-5) for name, value in first.items() if name != DEPTH)
    assert len(set(last.values())) == len(last)
    assert all(last[name] < first[name] for name in runs)


def test_a_token_has_as_many_active_parameters_in_every_variant(runs):
    """Apart from the routers: rows of 32 for 8 experts in 2 layers, and what decides about a layer."""
    sizes = {name: one["active"] for name, one in runs.items()}
    assert sizes["8 mixed experts"] == sizes["4 text + 4 image experts"] == sizes["dense"] + 2 * 8 * 32
    assert runs["8 mixed experts"]["parameters"] > runs["dense"]["parameters"]
    assert runs[DEPTH]["flops"] < runs["4 text + 4 image experts"]["flops"]
    assert 0 <= runs[DEPTH]["through"]["model.layers.1"] < 1


def test_balance_counts_each_modality_in_its_own_group(tokenizer):
    """Of a mixture of two groups that is perfectly balanced in both, each adds as much as a balanced one."""
    plan = dataclasses.make_dataclass("Plan", ["groups", "routing"])
    routing = dataclasses.make_dataclass("Routing", ["k"])(2)
    logits = torch.full((8, 8), float("-inf"))
    for token in range(8):
        group, favourite = divmod(token, 4)
        logits[token, 4 * group : 4 * group + 4] = torch.zeros(4)
        logits[token, 4 * group + favourite] = logits[token, 4 * group + (favourite + 1) % 4] = 1.0
    mixture = dataclasses.make_dataclass("Mixture", ["plan", "logits"])(plan((("text", 4), ("image", 4)), routing), logits)
    assert train.grouped_switch_loss(mixture, torch.ones(8, dtype=torch.bool)).item() == pytest.approx(2 * 2)


def test_results_are_of_the_recipes_in_the_code(results):
    for name, recipe in (("start", experiment.START), ("continued", experiment.CONTINUED)):
        assert results[name] == dataclasses.asdict(recipe)
    steps = [*range(0, experiment.CONTINUED.steps + 1, experiment.EVERY)]
    assert list(results["runs"]) == list(experiment.VARIANTS)
    for by_seed in results["runs"].values():
        assert list(by_seed) == [str(seed) for seed in experiment.SEEDS]
        assert all(one["steps"] == steps for one in by_seed.values())


def test_committed_runs_of_a_seed_start_from_the_same_function(results):
    for seed, dense in results["runs"]["dense"].items():
        for name in set(results["runs"]) - {DEPTH}:
            for kind in ("text", "image"):
                assert results["runs"][name][seed][kind][0] == pytest.approx(dense[kind][0], rel=1e-5)


def test_the_readme_shows_the_table_of_the_results(results):
    assert experiment.table(results["runs"]) in (DIGITS / "README.md").read_text()


def test_the_committed_plot_is_of_the_results(results, tmp_path):
    experiment.plot(results["runs"], tmp_path / "plot.svg")
    drawn, committed = ((path.read_text()) for path in (tmp_path / "plot.svg", experiment.PLOT))
    assert committed.count("<path") == drawn.count("<path")
