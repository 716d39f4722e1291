"""Weights quantised while the model runs: beside what transformers computes with the same weights, layer by layer."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mocomp.calibration import tokens
from mocomp.calibration.balance import folded
from mocomp.calibration.quantiser import Candidate, Quantiser
from mocomp.calibration.tokens import Bank, Routed
from mocomp.calibration.walk import Walk
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.passes.quantize_weights import dense_weights, expert_weights, quantisable
from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.algorithms.awq import AWQ
from mocomp.quant.algorithms.gptq import GPTQ
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.formats import Format, Stored, parse
from mocomp.quantising import Plan
from mocomp.verify.quality import Quality
from mocomp.verify.reference import Reference
from mocomp.weights.scratch import Scratch
from tests.calibration.models import Opened, logits, mixtures, opened

LAYERS = ("model.layers.0.mlp.experts", "model.layers.1.mlp.experts")
SIZES, LEARNED = ((2, 60), (1, 90), (3, 20)), (True, True, False)
SEEN: list[Moments] = []


@dataclass(frozen=True)
class Spy(RTN):
    """Rounds, and remembers what it was told."""

    calibrated: ClassVar[bool] = True

    def quantise(self, w: Tensor, format: Format, moments: Moments | None) -> tuple[Tensor, object]:
        SEEN.append(moments)
        return super().quantise(w, format, moments)


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    """Some of whose hidden dimensions are larger than others, as those of real models are."""
    source = shutil.copytree(
        checkpoint("qwen3_moe", experts=4, moe_intermediate_size=64), tmp_path_factory.mktemp("wide") / "m"
    )
    weights = load_file(source / "model.safetensors")
    weights |= {name: w * torch.logspace(-0.7, 0.7, len(w)) for name, w in weights.items() if "post_attention" in name}
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    with opened(source) as made:
        yield made


@dataclass
class Quantised:
    """What became of the weights of a model."""

    made: Opened
    rows: list[dict[str, Tensor]]
    candidate: Candidate

    @property
    def quality(self) -> Quality:
        return self.candidate.quality()

    def part(self, name: str, part: str) -> Tensor:
        return self.candidate.weights[name].parts[part].evaluate(self.candidate.store.read)

    def weight(self, name: str) -> Tensor:
        weight = self.candidate.weights[name]
        parts = {part: recipe.evaluate(self.candidate.store.read) for part, recipe in weight.parts.items()}
        w = weight.form.dequantise(Stored(**parts), weight.columns)
        return w if weight.inputs is None else w * weight.inputs.evaluate(self.candidate.store.read)

    def reference(self, layers: tuple[str, ...] = LAYERS, w_out: bool = True) -> Reference:
        """The model of transformers with the quantised experts of these layers."""
        reference = self.made.reference()
        for layer in layers:
            names = f"{layer}.gate_up_proj", f"{layer}.down_proj"
            w_in, second = self.weight(names[0]), self.made.program.recipes[names[1]].evaluate(self.made.checkpoint.read)
            for e, w in enumerate(self.weight(names[1]) if w_out else second):
                reference.put_experts(layer, e, w_in[e].numpy(), w.contiguous().numpy())
        return reference


@pytest.fixture
def quantise(model, tmp_path) -> Callable[..., Quantised]:
    """quantise(algorithm, format, ...): the experts, over rows of which some are held out."""
    stores = []

    def run(algorithm: Algorithm, text: str = "int4:32", few: str = "all", rows=None, learned=LEARNED, names=None) -> Quantised:
        rows = rows or model.rows(*SIZES)
        stores.append(Scratch(tmp_path / f"{len(stores)}", f"{len(stores)}:"))
        plan = Plan("", dict.fromkeys(names or expert_weights(model.program), parse(text)), algorithm, few)
        candidate = plan.candidate(model.program, stores[-1])
        visited = quantisable(model.program, candidate.weights)
        quantiser = Quantiser(model.program, model.checkpoint.read, [candidate], rows, list(learned))
        Walk(model.program, model.checkpoint.read, visited, 2).run(rows, quantiser)
        return Quantised(model, rows, candidate)

    yield run
    for store in stores:
        store.close()


def floats(made: Opened, name: str) -> Tensor:
    return made.program.recipes[name].evaluate(made.checkpoint.read).float()


def near(found: Tensor, expected: Tensor, within: float = 1e-4) -> bool:
    return bool((found - expected).abs().max() <= within * expected.abs().max())


@pytest.mark.parametrize("text", ["int4:32", "int8:asym", "fp8:tensor", "nvfp4"])
def test_rounding_is_that_of_the_format(quantise, model, text):
    made = quantise(RTN(), text, names=[*expert_weights(model.program), *dense_weights(model.program)])
    for name, weight in made.candidate.weights.items():
        w = floats(model, name)
        grid = weight.form.fit(w)
        meant = weight.form.pack(weight.form.encode(w, grid), grid).tensors()
        for part in weight.parts:
            found = made.part(name, part)
            assert torch.equal(found.float(), meant[part].float()) and found.shape == meant[part].shape, (name, part)


def moments_by_hand(x: Tensor, ids: Tensor, shares: Tensor, experts: int) -> tuple[Tensor, Tensor, list[int]]:
    """Token by token."""
    second, magnitude, count = torch.zeros(experts, x.shape[1], x.shape[1]), torch.zeros(experts, x.shape[1]), [0] * experts
    for t in range(len(x)):
        for e, share in zip(ids[t].tolist(), shares[t], strict=True):
            second[e] += share**2 * torch.outer(x[t], x[t])
            magnitude[e] += x[t].abs()
            count[e] += 1
    return second, magnitude / torch.tensor(count)[:, None], count


def test_moments_are_those_of_each_expert_s_own_tokens_behind_quantised_layers(quantise, model):
    """Layer 1 sees what layer 0 really gives, and w_out what w_in does. Held-out rows tell nothing."""
    SEEN.clear()
    made = quantise(Spy(), "int2:16")
    before = mixtures(made.reference(LAYERS[:1]), made.rows[:2])  # layer 0 quantised, layer 1 not
    exact = mixtures(model.reference(), made.rows[:2])
    for i, layer in enumerate(LAYERS):
        seen = before[layer]
        second, magnitude, count = moments_by_hand(seen.x, seen.ids, seen.shares, 4)
        of_w_in, of_w_out = SEEN[2 * i : 2 * i + 2]
        assert near(of_w_in.second, second) and near(of_w_in.magnitude, magnitude) and of_w_in.tokens.tolist() == count
        w_in = made.weight(f"{layer}.gate_up_proj")
        for e in range(4):
            token, place = (seen.ids == e).nonzero(as_tuple=True)
            gate, up = (seen.x[token] @ w_in[e].T).chunk(2, -1)
            h = torch.nn.functional.silu(gate) * up * seen.shares[token, place][:, None]
            assert near(of_w_out.second[e], h.T @ h)
    float_x = exact[LAYERS[1]]
    assert not near(SEEN[2].second, moments_by_hand(float_x.x, float_x.ids, float_x.shares, 4)[0], 0.02)


def test_errors_and_agreement_are_those_of_the_rows_held_out(quantise, model):
    made = quantise(GPTQ(), "int2:16")
    exact, rounded = mixtures(model.reference(), made.rows[2:]), mixtures(made.reference(), made.rows[2:])
    plain = model.reference()
    for layer, told in zip(LAYERS, made.candidate.layers, strict=True):
        seen = rounded[layer]
        should = torch.from_numpy(plain.run_experts(layer, *(t.numpy() for t in (seen.x, seen.ids, seen.shares))).y)
        assert told.layer == layer
        assert told.error == pytest.approx(float((seen.y - should).norm() / should.norm()), rel=1e-3) and told.error > 0.1
        same = sum(len(set(a) & set(b)) for a, b in zip(seen.ids.tolist(), exact[layer].ids.tolist(), strict=True))
        assert told.agreement == pytest.approx(same / seen.ids.numel())
    outputs = [logits(of, made.rows[2]).double() for of in (model.reference(), made.reference())]
    p, q = (torch.log_softmax(y, -1) for y in outputs)
    found = made.quality
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3) and found.tokens == 60
    assert found.top1 == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    assert found.error == pytest.approx(float((outputs[0] - outputs[1]).norm() / outputs[0].norm()), rel=1e-3)


def test_rows_held_out_have_no_say_and_rows_learned_from_have(quantise, model):
    rows = model.rows(*SIZES)
    other = [model.row(*SIZES[i], seed=90) if i in (1, 2) else row for i, row in enumerate(rows)]
    names = expert_weights(model.program)
    plain, held_out, learned = (
        quantise(GPTQ(), rows=[*rows[:2], other[2]] if i == 1 else [rows[0], other[1], rows[2]] if i == 2 else rows)
        for i in range(3)
    )
    assert all(torch.equal(plain.part(name, "codes"), held_out.part(name, "codes")) for name in names)
    assert plain.quality.kl != held_out.quality.kl
    assert any(not torch.equal(plain.part(name, "codes"), learned.part(name, "codes")) for name in names)


def test_where_nothing_is_held_out_all_is_judged(quantise):
    assert quantise(RTN(), learned=(True, True, True)).quality.tokens == 120 + 90 + 60


def test_experts_with_few_tokens_are_named_and_learn_from_all_or_nothing(quantise, model):
    rows = model.rows((1, 50), (1, 9))
    SEEN.clear()
    told = {few: quantise(GPTQ(), "int2:16", few, rows, (True, False)) for few in ("all", "rtn")}
    quantise(Spy(), "int2:16", "all", rows, (True, False))
    seen = mixtures(model.reference(), rows[:1])[LAYERS[0]]
    counts = torch.bincount(seen.ids.flatten(), minlength=4).tolist()
    few = [e for e, count in enumerate(counts) if count < 32]
    assert few and len(few) < 4
    w, name = floats(model, f"{LAYERS[0]}.gate_up_proj"), f"{LAYERS[0]}.gate_up_proj"
    plain = parse("int2:16")
    plain = plain.pack(plain.encode(w, plain.fit(w)), plain.fit(w))
    for how, made in told.items():
        assert made.candidate.layers[0].few == dict.fromkeys(few, how)
        for part in ("codes", "scales"):
            same = [torch.equal(made.part(name, part)[e], getattr(plain, part)[e]) for e in range(4)]
            assert same == [how == "rtn" and e in few for e in range(4)]
    everyone = (seen.x.T @ seen.x).expand(4, -1, -1)
    assert [near(SEEN[0].second[e], everyone[e]) for e in range(4)] == [e in few for e in range(4)]


@pytest.mark.parametrize("algorithm", [GPTQ(), AWQ()], ids=lambda a: a.name)
def test_experts_a_few_at_a_time_are_the_same(quantise, monkeypatch, algorithm):
    together = quantise(algorithm)
    monkeypatch.setattr(tokens, "LIMIT", 1)
    alone = quantise(algorithm)
    for name, weight in together.candidate.weights.items():
        assert all(torch.equal(together.part(name, part), alone.part(name, part)) for part in weight.parts), name
    assert alone.quality.kl == pytest.approx(together.quality.kl, rel=1e-6)
    assert [q.error for q in alone.quality.layers] == pytest.approx([q.error for q in together.quality.layers], rel=1e-5)


def test_balancing_alone_changes_no_function(quantise, model):
    """Where rounding is next to nothing. Each weight by itself has changed all the same."""
    made = quantise(AWQ(), "int8:16", names=[*expert_weights(model.program), *dense_weights(model.program)])
    assert all(layer.error < 0.02 for layer in made.candidate.layers)
    for name in expert_weights(model.program):
        inputs = made.candidate.weights[name].inputs
        assert (inputs is None) == name.endswith("down_proj")
        if inputs is None:
            assert not near(made.weight(name), floats(model, name), 0.1)
            continue
        factors = inputs.evaluate(made.candidate.store.read)
        assert factors.max() > 1.2 * factors.min()
        assert near(made.weight(name).chunk(2, 1)[0], floats(model, name).chunk(2, 1)[0], 0.02)
    exact = mixtures(model.reference(), made.rows[2:])[LAYERS[0]].y
    assert near(mixtures(made.reference(), made.rows[2:])[LAYERS[0]].y, exact, 0.02)
    forgotten = f"{LAYERS[0]}.gate_up_proj"
    made.candidate.weights[forgotten] = replace(made.candidate.weights[forgotten], inputs=None)
    assert not near(mixtures(made.reference(), made.rows[2:])[LAYERS[0]].y, exact, 0.1)


KINDS = {
    "swiglu": (GLU(), 2, False, True),
    "geglu": (GLU("gelu"), 2, False, True),
    "gpt-oss": (GLU("silu", 1.702, 1.0, 7.0), 2, False, False),
    "limited": (GLU(limit=7.0), 2, False, False),
    "biased": (GLU(), 2, True, False),
    "plain": (FFN("relu"), 1, False, False),
}


@pytest.mark.parametrize("name", KINDS)
def test_scales_go_into_up_rows_where_they_are_linear(name):
    kind, rows, biased, folds = KINDS[name]
    torch.manual_seed(0)
    bias = torch.randn(3, rows * 32) if biased else None
    bank = Bank(0, kind, torch.randn(3, rows * 32, 16), bias, torch.randn(3, 16, 32), None)
    x = torch.randn(90, 16) * torch.linspace(0.1, 3, 16)
    routed = Routed(x, torch.arange(90)[:, None] % 3, torch.ones(90, 1), torch.ones(90, dtype=torch.bool), 3)
    made = folded(bank, routed, parse("int4:16"), {})
    assert (made is not bank) == folds
    for e in range(3):
        assert near(made.outer(e, made.inner(e, x)), bank.outer(e, bank.inner(e, x)))
    if folds:
        assert not near(made.w_out, bank.w_out, 0.1) and torch.equal(made.w_in[:, :32], bank.w_in[:, :32])
