"""Packed weights go into operators where the target has them, and whoever is left out is told why."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mocomp.experts.ffn import FFN
from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.ir.specs import spell
from mocomp.passes import run
from mocomp.passes.fuse_quantized import FuseQuantized, formats_of, linears_of
from mocomp.passes.quantize_weights import QuantizeWeights
from mocomp.passes.softmax_routing import SoftmaxRouting
from mocomp.quant.formats import Format
from mocomp.routers.softmax_topk import SoftmaxTopK
from tests.passes.test_quantize_weights import packed
from tests.programs import EXPERTS, HIDDEN, WIDTH, Formula, Traced, op_names, trace

aten = torch.ops.aten
Stored = list[tuple[Format, tuple[int, ...]]]


class Model(torch.nn.Module):
    """A linear layer with a bias, and a mixture of plain experts with biases."""

    def __init__(self) -> None:
        super().__init__()
        bank = {"w_in": (EXPERTS, WIDTH, HIDDEN), "b_in": (EXPERTS, WIDTH), "w_out": (EXPERTS, HIDDEN, WIDTH)}
        self.linear = Formula(lambda m, x: functional.linear(x, m.w, m.b), w=(HIDDEN, HIDDEN), b=(HIDDEN,))
        self.mixture = Formula(mixture, gate=(EXPERTS, HIDDEN), b_out=(EXPERTS, HIDDEN), **bank)

    def forward(self, x: Tensor) -> Tensor:
        return self.mixture(self.linear(x))


def mixture(m: Formula, x: Tensor) -> Tensor:
    ids, shares = torch.ops.mocomp.route(functional.linear(x, m.gate), [], spell(SoftmaxTopK(2, normalize=True)))
    return torch.ops.mocomp.experts(x, ids, shares, m.w_in, m.b_in, m.w_out, m.b_out, spell(FFN("relu")))


def prepared(*names: str, routed: bool = True) -> Traced:
    traced = trace(Model())
    formats = {"mixture.w_in": "int4:16:asym", "mixture.w_out": "int8", "linear.w": "int2:16"}
    run(QuantizeWeights({name: packed(traced, name, formats[name]) for name in names or formats}), traced.program)
    if routed:
        run(SoftmaxRouting(), traced.program)
    return traced


def every(*arguments: object) -> None:
    """An operator for all."""


def test_what_the_target_has_is_fused_and_the_numbers_stay():
    traced, asked = prepared(), []
    before = traced.run()

    def has_mixture(stored: Stored) -> None:
        asked.append([(form.text, shape) for form, shape in stored])

    def has_linear(form: Format, shape: tuple[int, ...]) -> None:
        asked.append((form.text, shape))

    receipt = run(FuseQuantized(has_mixture, has_linear), traced.program)
    assert receipt.changed == 2 and receipt.skipped == []
    bank = [("int4:16:asym", (EXPERTS, WIDTH, HIDDEN)), ("int8", (EXPERTS, HIDDEN, WIDTH))]
    assert asked == [("int2:16", (HIDDEN, HIDDEN)), bank]
    assert not {"dequantize", "mixture"} & set(op_names(traced.program))
    torch.testing.assert_close(traced.run(), before, rtol=1e-5, atol=1e-5)
    formats = {"mixture.w_in": "int4:16:asym", "mixture.w_out": "int8", "linear.w": "int2:16"}
    assert formats_of(traced.program) == formats and linears_of(traced.program) == {"linear.w": "linear"}
    assert FuseQuantized(every, every).obstacles(traced.program) == []


def test_what_it_has_not_is_left_and_told():
    traced = prepared()
    before = traced.run()
    step = FuseQuantized(lambda stored: f"no QMoE of {stored[1][0].text}", lambda form, shape: f"no product of {form.text}")
    reasons = ["linear: no product of int2:16", "mixture: no QMoE of int8"]
    receipt = run(step, traced.program)
    assert receipt.changed == 0 and receipt.skipped == reasons
    assert sorted(map(": ".join, step.obstacles(traced.program))) == reasons
    assert len(calls(traced.program, MOCOMP.dequantize.default)) == 3 and torch.equal(traced.run()[0], before[0])
    assert formats_of(traced.program) == {} and linears_of(traced.program) == {}


@pytest.mark.parametrize("name", ["mixture.w_in", "mixture.w_out"])
def test_one_projection_alone_is_no_packed_mixture(name):
    traced = prepared(name)
    receipt = run(FuseQuantized(every, every), traced.program)
    assert receipt.changed == 0 and receipt.skipped == ["mixture: one projection is quantised and the other is not"]
    assert [": ".join(pair) for pair in FuseQuantized(every, every).obstacles(traced.program)] == receipt.skipped


def test_experts_that_no_operator_takes_are_an_obstacle():
    traced = prepared(routed=False)
    receipt = run(FuseQuantized(every, every), traced.program)
    assert receipt.changed == 1  # the linear layer
    assert FuseQuantized(every, every).obstacles(traced.program) == [("mixture", "the weights are unpacked first")] * 2


def test_floats_are_no_business_of_it():
    traced = trace(Model())
    run(SoftmaxRouting(), traced.program)
    before = op_names(traced.program)
    receipt = run(FuseQuantized(every, every), traced.program)
    assert receipt.changed == 0 and receipt.skipped == [] and op_names(traced.program) == before
