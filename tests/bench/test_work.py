"""What is counted of a run, beside counts that are made another way."""

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mocomp.bench.points import Point
from mocomp.bench.roofline import Measure, Roofline, Work
from mocomp.bench.work import Bank, Counter, Weights, cache_bytes, of_graph
from mocomp.models.source import open_source
from mocomp.verify.inputs import Case, arrays
from mocomp.verify.reference import Reference


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "deepseek_v3", "llama", "bert", "vit"])
def test_operations_are_those_that_the_original_does(converted, family):
    made = converted(family)
    source, interface = open_source(str(made.source)), made.report.interface
    point = Point(1, 1, images=True) if interface.kind == "vision" else Point(2, 12)
    reference = Reference.load(source, interface)
    given = arrays(interface, Case("", point.batch, point.sequence), 0)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        reference.model(**{name: torch.from_numpy(array) for name, array in given.items()})
    assert Counter(source, interface).flop(point) == pytest.approx(counter.get_total_flops(), rel=0.03)


def test_a_past_costs_attention_alone(converted):
    made = converted("qwen3_moe")
    config, counter = (
        json.loads((made.source / "config.json").read_text()),
        Counter(open_source(str(made.source)), made.report.interface),
    )
    more = counter.flop(Point(1, 1, 9)) - counter.flop(Point(1, 1))
    heads, width = config["num_attention_heads"], config["head_dim"]
    assert more == 9 * 2 * 2 * heads * width * config["num_hidden_layers"]


def test_mixtures_of_ours_are_counted_as_their_chosen_experts(upcycled, converted):
    dense = converted("llama")
    counted = Counter(open_source(str(dense.source)), dense.report.interface).flop(Point(1, 8))
    for k in (1, 2):
        source = open_source(str(upcycled("llama", top_k=k)))
        config = source.config
        block = 3 * 2 * config.hidden_size * config.intermediate_size * 8 * config.num_hidden_layers
        router = 2 * config.hidden_size * 4 * 8 * config.num_hidden_layers
        assert Counter(source, dense.report.interface).flop(Point(1, 8)) == counted + (k - 1) * block + router


@pytest.mark.parametrize("way", ["stored", "float"])
def test_weights_are_those_of_the_checkpoint(converted, way):
    made = converted("qwen3_moe")
    source = open_source(str(made.source))
    config, mixtures = source.config, made.report.artifact.mixtures
    counter = Counter(source, made.report.interface)
    weights = of_graph(made.directory, mixtures) if way == "stored" else counter.weights({m.layer: m.k for m in mixtures}, None)
    assert weights is not None
    e, k, h, f = (getattr(config, n) for n in ("num_experts", "num_experts_per_tok", "hidden_size", "moe_intermediate_size"))
    assert weights.banks == [Bank(m.layer, e, k, 4 * e * 3 * h * f) for m in mixtures]
    assert weights.rows == 4 * h
    dense = weights.total - sum(bank.nbytes for bank in weights.banks)
    experts, table = sum(bank.nbytes for bank in weights.banks), 4 * config.vocab_size * h
    total = made.report.model["parameters"] * 4
    assert dense == pytest.approx(total - experts - table, rel=0.02)


def test_experts_that_are_read_are_those_that_tokens_come_to():
    bank = Bank("layer", 8, 2, 800)
    assert bank.read(1, None) == 200
    assert bank.read(1000, None) == pytest.approx(800, abs=1)
    assert bank.read(1000, 3) == 300
    draws = np.random.default_rng(0).random((4000, 5, 8)).argsort(-1)[..., :2]
    seen = np.mean([len(np.unique(draw)) for draw in draws])
    assert bank.read(5, None) == pytest.approx(100 * seen, rel=0.02)


def test_a_run_reads_rows_of_tables_and_all_that_is_dense():
    weights = Weights(1000, 10, [Bank("a", 8, 2, 800), Bank("b", 4, 1, 400)])
    assert weights.read(1, {"b": 3}) == 1000 + 10 + 200 + 300
    assert weights.total == 2200


def test_the_cache_is_read_once(converted):
    interface = converted("qwen3_moe").report.interface
    expected = sum(4 * 2 * heads * 7 * (key + value) for heads, key, value in interface.past)
    assert cache_bytes(interface, Point(2, 1, 7)) == expected > 0
    assert cache_bytes(interface, Point(2, 7)) == 0


def test_the_bound_is_the_slower_of_reading_and_computing():
    roofline = Roofline()
    roofline.add({"bandwidth_gb_s": 10.0, "weights_gb_s": 20.0, "gflop_s": 100.0})
    roofline.add({"bandwidth_gb_s": 8.0, "weights_gb_s": 25.0, "gflop_s": 90.0})
    assert (roofline.bandwidth_gb_s, roofline.weights_gb_s, roofline.gflop_s) == (10, 25, 100)
    assert roofline.bound_ms(Work(25 * 10**6, 10**8)) == pytest.approx(1.0)
    assert roofline.bound_ms(Work(25 * 10**6, 10**9)) == pytest.approx(10.0)
    assert roofline.bound_ms(Work(None, 10**8)) == pytest.approx(1.0)
    assert roofline.bound_ms(Work()) is None


def test_the_machine_is_measured(monkeypatch):
    monkeypatch.setattr("mocomp.bench.roofline.LARGEST", 1 << 22)
    monkeypatch.setattr("mocomp.bench.roofline.SIDE", 128)
    monkeypatch.setattr("mocomp.bench.roofline.SECONDS", 0.0)
    threads = torch.get_num_threads()
    seen = Measure({"threads": 1, "weights": 1 << 16}).answer({})
    torch.set_num_threads(threads)
    assert all(0.05 < value < 1e5 for value in seen.values())
