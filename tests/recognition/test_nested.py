"""Experts nested in one feed-forward: recognised in either order and several layouts; and what only looks like them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.models.recognition import nested, recognise, search
from mocomp.models.recognition.canonical_block import Mixture
from mocomp.models.user.source import from_module
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.routers.softmax_topk import SoftmaxTopK
from tests.recognition.blocks import HIDDEN, FeedForward, Loop, agree, built, example, several, topk_softmax

HALVES, STEPS = (24, 12, 6, 3), (6, 12, 18, 24)


class Nested(nn.Module):
    """Expert i is units of one feed-forward, by `units(i)`; every token has the sum of all experts times their shares."""

    def __init__(self, widths=HALVES, act=F.gelu, k=1, units=24, bias=True):
        super().__init__()
        self.widths, self.act, self.k = widths, act, k
        self.router = nn.Linear(HIDDEN, len(widths), bias=False)
        self.up, self.down = nn.Linear(HIDDEN, units, bias), nn.Linear(units, HIDDEN, bias)

    def units(self, i: int) -> slice:
        return slice(self.widths[i])

    def added(self, i: int) -> Tensor | None:
        return self.down.bias

    def expert(self, x: Tensor, i: int) -> Tensor:
        part = self.units(i)
        h = F.linear(x, self.up.weight[part], None if self.up.bias is None else self.up.bias[part])
        return F.linear(self.act(h), self.down.weight[:, part], self.added(i))

    def shares(self, x: Tensor) -> Tensor:
        ids, weights = topk_softmax(self.router(x), self.k)
        return torch.zeros_like(self.router(x)).scatter(-1, ids, weights.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.shares(x)
        return sum((shares[..., i, None] * self.expert(x, i) for i in range(len(self.widths))), torch.zeros_like(x))


class Gated(Nested):
    """With a gate, no biases, and a residual around."""

    def __init__(self):
        super().__init__(act=F.silu, k=2, bias=False)
        self.gate = nn.Linear(HIDDEN, 24, bias=False)

    def expert(self, x: Tensor, i: int) -> Tensor:
        part = self.units(i)
        inner = F.silu(F.linear(x, self.gate.weight[part])) * F.linear(x, self.up.weight[part])
        return F.linear(inner, self.down.weight[:, part])

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class Parameters(Nested):
    """Square matrices that are the block's own, both stored [in, out]."""

    def __init__(self):
        super().__init__((16, 8, 4, 2), k=2)
        del self.up, self.down
        self.first, self.second = (nn.Parameter(torch.randn(HIDDEN, HIDDEN) / 4) for _ in range(2))

    def expert(self, x: Tensor, i: int) -> Tensor:
        return F.relu(x @ self.first[:, self.units(i)]) @ self.second[self.units(i)]


class NotAPrefix(Nested):
    """One expert is units of the same feed-forward, and not the first ones."""

    def units(self, i: int) -> slice:
        return slice(9, 21) if i == 1 else super().units(i)


class WithoutBias(Nested):
    """One expert leaves the last bias out."""

    def added(self, i: int) -> Tensor | None:
        return None if i == 2 else self.down.bias


class Unordered(Nested):
    """Widths that neither fall nor rise."""

    def __init__(self):
        super().__init__((12, 24, 6, 3))


class Scaled(Nested):
    """One expert has a factor of its own on its units."""

    def expert(self, x: Tensor, i: int) -> Tensor:
        return super().expert(x, i) * (1.001 if i == 1 else 1.0)


class Among(Nested):
    """Each expert's weight is that of the next in line as well, for a token that likes it."""

    def shares(self, x: Tensor) -> Tensor:
        shares = super().shares(x)
        return shares + shares.roll(1, -1) * (x[..., :1] > 1.0)


NESTED = {
    "halves": (Nested, 1, FFN("gelu"), HALVES),
    "steps": (lambda: Nested(STEPS, F.relu, 2), 2, FFN("relu"), STEPS),
    "widths of its own": (lambda: Nested((2, 5, 23), F.silu, 2), 2, FFN("silu"), (2, 5, 23)),
    "act(0) is not 0": (lambda: Nested(act=torch.sigmoid, k=3), 3, FFN("sigmoid"), HALVES),
    "gated": (Gated, 2, GLU("silu"), HALVES),
    "parameters": (Parameters, 2, FFN("relu"), (16, 8, 4, 2)),
}
LEFT = (NotAPrefix, WithoutBias, Unordered, Scaled, Among)


def found_in(model: nn.Module):
    return recognise(model, [{"x": example(2, 7)}])


@pytest.mark.parametrize("name", NESTED)
def test_nested_experts_are_a_bank_of_slices(name):
    make, k, expert, widths = NESTED[name]
    model = built(make)
    recognition = found_in(model)
    (found,) = recognition.blocks
    assert (found.name, found.expert, recognition.refused) == ("", expert, [])
    assert isinstance(found.router, SoftmaxTopK) and found.router.k == k
    agree(model, recognition, 3, 19)
    assert isinstance(found.form, Mixture)
    bank = found.form.kind.bank(model, found.form.experts)
    assert bank.w_out.shape == (len(widths), HIDDEN, max(widths))
    for e, width in enumerate(widths):
        assert not bank.w_out[e, :, width:].any() and bank.w_out[e, :, :width].all()


@pytest.mark.parametrize("make", LEFT)
def test_what_only_looks_nested_is_left_with_the_reason(make):
    model = built(make)
    recognition = found_in(model)
    (missed,) = recognition.refused
    assert not recognition.blocks and missed.error > 1e-6
    plain = Nested(model.widths) if make is not Unordered else Nested()
    plain.load_state_dict(model.state_dict())
    assert float((plain(example(3, 9)) - model(example(3, 9))).detach().abs().max()) > 1e-5


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_width_that_is_wrong_by_one_unit_is_not_proven(shift, monkeypatch):
    right = nested._widths
    monkeypatch.setattr(nested, "_widths", lambda *given: [right(*given)[0] + shift, *right(*given)[1:]])
    recognition = found_in(built(Nested))
    assert not recognition.blocks and recognition.refused[0].error > 1e-6


def test_weights_of_bands_are_not_those_of_experts(monkeypatch):
    monkeypatch.setattr(nested._Proof, "_differences", lambda self, bands: bands)
    recognition = found_in(built(Nested))
    assert not recognition.blocks and "no known router does this" in recognition.refused[0].reason


def test_a_block_within_another_is_told_of_once():
    class Around(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x) * 2.0

    assert [missed.name for missed in found_in(built(lambda: Around(NotAPrefix()))).refused] == ["inner"]
    assert [found.name for found in found_in(built(lambda: Around(Nested()))).blocks] == ["inner"]


def test_what_has_no_such_structure_is_not_even_copied(monkeypatch):
    """Attention, a dense feed-forward, a classifier; of a mixture nothing is asked twice."""
    heads = nn.MultiheadAttention(HIDDEN, 4, batch_first=True)
    head = nn.Sequential(FeedForward(F.gelu, False, True), nn.Linear(HIDDEN, 24))
    assert nested.feed_forwards(nn.ModuleList([heads, FeedForward(), head, Loop(several(FeedForward))])) == []
    assert [one.holder for one in nested.feed_forwards(Nested())] == [""]
    monkeypatch.setattr(search, "copied", lambda module: pytest.fail("copied"))
    assert not found_in(built(lambda: nn.Sequential(FeedForward(), nn.Linear(HIDDEN, HIDDEN)))).refused


class Layer(nn.Module):
    """Nested experts with an activation that ONNX Runtime's operator has, then some with one that it has not."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.expanded = Nested(STEPS, F.silu, 2), Nested(k=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.expanded(x + self.fused(x))


def test_the_artifact_has_the_fused_operator_on_sliced_weights(tmp_path):
    module = built(Layer)
    source = from_module(module, {"x": example(2, 7)}, {"x": ("batch", "sequence", None)}, "nested")
    report = convert(source, tmp_path / "made", ConvertOptions(target="onnxruntime"))
    assert report.parity is not None and report.parity.passed
    model = onnx.load(tmp_path / "made" / "model.onnx")
    operators = [node for node in model.graph.node if node.op_type == "MoE"]
    assert len(operators) == 1
    banks = {one.name: list(one.dims) for one in model.graph.initializer}
    assert [4, 24, HIDDEN] in [banks[name] for name in operators[0].input if name in banks]
    session = onnxruntime.InferenceSession(tmp_path / "made" / "model.onnx", providers=["CPUExecutionProvider"])
    for batch, length in ((1, 3), (3, 41)):
        x = example(batch, length, 4)
        with torch.no_grad():
            expected = module(x).numpy()
        (made,) = session.run(None, {"x": x.numpy()})
        np.testing.assert_allclose(np.asarray(made), expected, 1e-4, 1e-5)
