"""Carved blocks: every neuron in one expert, all experts together the block, and a router that needs no training."""

import dataclasses
from functools import cache

import numpy as np
import onnxruntime
import pytest
import torch
import transformers

from mocomp.calibration.capture import observed
from mocomp.checkpoints import opened
from mocomp.commands.carve import carve
from mocomp.commands.densify import densify
from mocomp.errors import ParityFailed, Usage
from mocomp.fill import carve as carving
from mocomp.fill import slices
from mocomp.fill.activity import markers
from mocomp.fill.carve import Carve, representative
from mocomp.nn.mixture import Mixture
from mocomp.options import CarveOptions, ConvertOptions, DensifyOptions
from mocomp.pipeline import convert
from mocomp.routers.topk_uniform import TopKUniform
from mocomp.weights.arithmetic import Pick

METHODS = ("random", "clusters", "cmoe")
FAMILIES = ("llama", "qwen3", "bert", "vit")


@pytest.fixture(scope="module")
def dense(checkpoint):
    """dense(family): the opened checkpoint, and the tokens that came to its first block."""

    @cache
    def made(family: str):
        context = opened(str(checkpoint(family)), CarveOptions())
        model = context.__enter__()
        contexts.append(context)
        enter = model.blocks[0].enter
        return model, observed(model.source, model.traced.interface, [enter], "", 0)[0][enter].x

    contexts: list = []
    yield made
    for context in contexts:
        context.__exit__(None, None, None)


def mixture(model, filled) -> Mixture:
    made = Mixture(filled.plan)
    made.load_state_dict({name: recipe.evaluate(model.read) for name, recipe in filled.weights.items()})
    return made.eval()


def output(model, block, x):
    """What the block computes, from its weights."""
    w_in, b_in, w_out, b_out = (
        None if part is None else part.evaluate(model.read)
        for part in (block.dense.w_in, block.dense.b_in, block.dense.w_out, block.dense.b_out)
    )
    return torch.nn.functional.linear(block.expert.inner(torch.nn.functional.linear(x, w_in, b_in)), w_out, b_out)


def off(a, b) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("experts, shared", [(2, 0), (2, 1), (4, 0), (4, 1), (8, 0), (8, 1), (8, 3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_all_experts_together_are_the_block(dense, family, experts, shared, method):
    """And with fewer of them, what is left out is what their neurons add, whatever the bias of the result."""
    model, x = dense(family)
    block, x = model.blocks[0], x[:200]
    filled = Carve(experts, shared, experts - shared, method, model.read)(block, x)
    assert filled.changes == ""
    with torch.no_grad():
        assert off(mixture(model, filled)(x), output(model, block, x)) <= 1e-5
    if experts - shared == 1:
        return
    fewer = Carve(experts, shared, 1, method, model.read)(block, x)
    assert fewer.changes == f"a token goes past {experts - shared - 1} of {experts - shared} routed experts"
    made = mixture(model, fewer)
    with torch.no_grad():
        ids = made.route(x, None)[0]
        all_ids = torch.arange(experts - shared).expand(len(x), -1)
        others = all_ids[all_ids != ids].reshape(len(x), -1)
        bias = 0 if made.experts.b_out is None else made.experts.b_out[0] * others.shape[1]
        rest = made.experts(x, others, torch.ones(others.shape)) - bias
        assert off(made(x) + rest, output(model, block, x)) <= 1e-5


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("family", ["llama", "bert"])
def test_every_neuron_goes_to_one_expert(dense, monkeypatch, family, shared, method):
    model, x = dense(family)
    block, parts = model.blocks[0], []

    def spied(block, indices, bias):
        parts.append(list(indices))
        return slices.neurons(block, indices, bias)

    monkeypatch.setattr(carving, "neurons", spied)
    Carve(8, shared, 2, method, model.read)(block, x)
    assert sorted(i for part in parts for i in part) == list(range(block.dense.width))
    assert sorted(map(len, parts)) == sorted([12] * (8 - shared) + [12 * shared] * (shared > 0))


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_the_score_of_an_expert_is_the_size_of_a_neuron_of_its_own(dense, family):
    model, x = dense(family)
    block = model.blocks[0]
    made = mixture(model, Carve(8, 2, 2, "cmoe", model.read)(block, x))
    logits = made.router(x)
    with torch.no_grad():
        for e in range(6):
            w_in, b_in = made.experts.w_in[e], None if made.experts.b_in is None else made.experts.b_in[e]
            own = block.expert.inner(torch.nn.functional.linear(x, w_in, b_in)).abs()
            assert min(off(logits[:, e], own[:, i]) for i in range(own.shape[1])) < 1e-5


def test_what_is_active_most_is_shared(dense):
    """CMoE: no neuron of a routed expert is active more often than one of the shared expert."""
    model, x = dense("llama")
    made = mixture(model, Carve(8, 2, 2, "cmoe", model.read)(model.blocks[0], x))
    parts = [made.shared.w_in, *made.experts.w_in]
    with torch.no_grad():
        h = torch.cat([made.plan.kind.inner(x @ w.T) for w in parts], 1)
    rates = markers(h, 10).mean(0)
    assert rates[:24].min() >= rates[24:].max()


def test_neurons_that_are_active_together_go_together():
    """Two kinds of tokens, each with neurons of its own: the expert of either kind is chosen for it."""
    h = torch.zeros(40, 9)
    h[:, 0] = 1  # for all tokens
    h[:20, [1, 3, 5, 7]], h[20:, [2, 4, 6, 8]] = 1, 1
    active = markers(h + 0.01 * torch.rand(h.shape, generator=torch.Generator().manual_seed(0)), 5).T
    always, parts = carving.by_activity(active, active.mean(1), 9, 1)
    assert always == [0]
    _, parts = carving.by_activity(active[1:], active[1:].mean(1), 2, 0)
    assert sorted(parts) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_the_neuron_that_stands_for_others_is_not_one_that_never_speaks():
    active = torch.tensor([[1.0, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0], [0] * 8, [1, 1, 1, 1, 0, 0, 0, 0]])
    assert representative(active, [0, 1, 2, 3]) == 3


def test_the_same_seed_makes_the_same_experts(dense):
    model, x = dense("llama")
    for method in METHODS:
        one, again, other = (
            Carve(8, 1, 2, method, model.read, seed)(model.blocks[0], x).weights["experts.w_in"].evaluate(model.read)
            for seed in (0, 0, 1)
        )
        assert torch.equal(one, again)
        assert torch.equal(one, other) == (method == "cmoe")  # which draws nothing


@pytest.mark.parametrize(
    "options, rounded", [({"top_k": 3}, True), ({"experts": 4, "top_k": 4}, False), ({"shared": 1}, False)]
)
def test_a_bias_of_bfloat16_in_thirds_is_said_to_be_rounded(checkpoint, tmp_path, options, rounded):
    known = {"experts": 3, "shared": 0, "top_k": 2}
    source = str(checkpoint("bert", dtype=torch.bfloat16))
    receipt = carve(source, tmp_path / "moe", CarveOptions(**known | options))
    assert receipt.changes == ("a bias of torch.bfloat16 is rounded when it is cut into 3" if rounded else "")
    back = densify(str(tmp_path / "moe"), tmp_path / "dense", DensifyOptions())
    assert back.preserved != rounded and back.moved is not None and (rounded or back.moved <= 1e-5)


BAD = {
    "no divisor": ({"experts": 7}, r"--experts 7 does not divide the width 96 .*\nThese do: 2, 3, 4, 6, 8, 12"),
    "none": ({"experts": 0}, "--experts 0 does not divide"),
    "all shared": ({"shared": 8}, "--shared 8 of --experts 8 leaves no expert"),
    "less than none": ({"shared": -1}, "--shared -1"),
    "no top-k": ({"top_k": 0}, "--top-k 0, and there are 7 experts"),
    "too many": ({"top_k": 8}, "--top-k 8, and there are 7 experts"),
}


@pytest.mark.parametrize("options, words", BAD.values(), ids=BAD)
def test_numbers_that_do_not_fit_are_refused(checkpoint, tmp_path, options, words):
    with pytest.raises(Usage, match=words):
        carve(str(checkpoint("llama")), tmp_path / "moe", CarveOptions(**options))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_receipt_proves_that_nothing_was_lost(checkpoint, tmp_path, family):
    receipt = carve(str(checkpoint(family)), tmp_path / "moe", CarveOptions(experts=4, shared=1, top_k=3))
    assert receipt.preserved and receipt.moved is not None and receipt.moved <= 1e-5
    assert any("calibration" in note for note in receipt.notes)


def test_the_receipt_says_what_was_left_out(checkpoint, tmp_path):
    receipt = carve(str(checkpoint("llama")), tmp_path / "moe", CarveOptions(experts=4, shared=1, top_k=2, method="random"))
    assert receipt.changes == "a token goes past 1 of 3 routed experts"
    assert receipt.moved is not None and receipt.moved > 1e-3 and receipt.kl is not None and receipt.kl > 0


def _twice(monkeypatch):
    """A neuron goes to two experts, and another to none."""
    real = carving.by_activity

    def planted(*args):
        always, parts = real(*args)
        return always, [[parts[1][0], *parts[0][1:]], *parts[1:]]

    monkeypatch.setattr(carving, "by_activity", planted)


def _scaled(monkeypatch):
    """Experts are averaged, and not summed."""
    monkeypatch.setattr(carving, "TopKUniform", lambda k: dataclasses.replace(TopKUniform(k), scale=1 / k))


def _bias_of_all(monkeypatch):
    """Each expert brings the whole bias of the result."""
    monkeypatch.setattr(carving, "neurons", lambda block, indices, bias: slices.neurons(block, indices, 1.0))


def _columns(monkeypatch):
    """Rows of one order go with columns of another."""
    real = slices.pick
    monkeypatch.setattr(slices, "pick", lambda source, dim, indices: real(source, dim, sorted(indices, reverse=dim == 1)))


FAULTS = {"a neuron twice": _twice, "a scale": _scaled, "too much bias": _bias_of_all, "columns": _columns}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_is_caught_and_nothing_is_kept(checkpoint, tmp_path, monkeypatch, fault):
    fault(monkeypatch)
    with pytest.raises(ParityFailed, match="carve was to preserve the function"):
        carve(str(checkpoint("bert")), tmp_path / "moe", CarveOptions(experts=4, shared=0, top_k=4))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "family, options", [("qwen3", {"top_k": 7}), ("bert", {"shared": 0, "top_k": 8, "method": "clusters"})]
)
def test_the_artifact_computes_what_the_dense_model_did(checkpoint, tmp_path, family, options):
    """Beyond parity with the carved model: the artifact beside the original, as transformers runs it."""
    carve(str(checkpoint(family)), tmp_path / "moe", CarveOptions(**options, parity="off"))
    report = convert(str(tmp_path / "moe"), tmp_path / "artifact", ConvertOptions())
    assert report.parity is not None and report.parity.passed
    auto = transformers.AutoModelForCausalLM if family == "qwen3" else transformers.AutoModel
    original = auto.from_pretrained(checkpoint(family)).eval()
    ids = np.random.default_rng(0).integers(0, 128, (2, 11))
    session = onnxruntime.InferenceSession(tmp_path / "artifact" / "model.onnx", providers=["CPUExecutionProvider"])
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    feed = {i.name: given.get(i.name) for i in session.get_inputs()}
    shapes = {i.name: i.shape for i in session.get_inputs()}
    feed = {n: np.zeros((2, shapes[n][1], 0, shapes[n][3]), np.float32) if v is None else v for n, v in feed.items()}
    with torch.no_grad():
        expected = original(torch.from_numpy(ids))[0]
    assert off(torch.from_numpy(session.run(None, feed)[0]), expected) <= 1e-5


def test_weights_stay_recipes(dense):
    """Nothing of a bank is in memory before it is written."""
    model, x = dense("llama")
    filled = Carve(8, 1, 2, "cmoe", model.read)(model.blocks[0], x)
    assert all(isinstance(part, Pick) for part in filled.weights["experts.w_in"].parts)  # type: ignore[attr-defined]


def test_the_command(command, checkpoint, tmp_path):
    done = command("carve", checkpoint("llama"), "-o", tmp_path / "moe", "--experts", 4, "--top-k", 3, "--method", "clusters")
    assert done.code == 0 and "function preserved" in done.out and "note: no calibration data" in done.out
    refused = command("carve", checkpoint("llama"), "-o", tmp_path / "other", "--experts", 5)
    assert refused.code == 2 and "does not divide the width 96" in refused.err and not (tmp_path / "other").exists()
