"""Packed weights are said in the graph: by name, once for all who read them, and nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mocomp.experts.ffn import FFN
from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.ir.specs import spell
from mocomp.passes import run
from mocomp.passes.quantize_weights import QuantizeWeights, banks, dense_weights, expert_weights, quantisable
from mocomp.quant.formats import parse
from mocomp.quant.weight import QuantisedWeight, promised
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.weights.recipes import Tensor as Named
from tests.programs import EXPERTS, HIDDEN, WIDTH, Formula, Traced, op_names, trace

SHAPES = {
    "first": (HIDDEN, HIDDEN), "head": (HIDDEN, HIDDEN), "gate": (EXPERTS, HIDDEN), "one_row": (1, HIDDEN),
    "w_in": (EXPERTS, WIDTH, HIDDEN), "w_out": (EXPERTS, HIDDEN, WIDTH),
}  # fmt: skip
aten = torch.ops.aten


def formula(m: Formula, x: Tensor) -> tuple[Tensor, ...]:
    """A linear layer, a mixture, a gate of one row, and a head that is read twice and tied to an embedding."""
    h = functional.linear(x, m.first)
    ids, shares = torch.ops.mocomp.route(functional.linear(h, m.gate) * 2, [], spell(SoftmaxTopK(2)))
    y = torch.ops.mocomp.experts(h, ids, shares, m.w_in, None, m.w_out, None, spell(FFN("relu")))
    y = y * functional.linear(h, m.one_row).sigmoid()
    looked_up = functional.embedding(ids[:, 0], m.head)
    return functional.linear(y, m.head), functional.linear(h, m.head), looked_up


@pytest.fixture
def traced() -> Traced:
    return trace(Formula(formula, **SHAPES))


def packed(traced: Traced, name: str, text: str = "int4:16:asym", factors: bool = False) -> QuantisedWeight:
    """A weight rounded to a format, its parts among the tensors."""
    form, w = parse(text), traced.tensors[name].detach()
    grid = form.fit(w)
    traced.tensors |= {f"{name}.{part}": t for part, t in form.pack(form.encode(w, grid), grid).tensors().items()}
    traced.tensors |= {f"{name}.inputs": torch.linspace(0.5, 2, w.shape[-1])} if factors else {}
    return promised(name, tuple(w.shape), form, factors)


def test_the_program_is_that_of_the_rounded_weights(traced):
    weights = {name: packed(traced, name, factors=name in ("w_in", "first")) for name in ("first", "w_in", "w_out")}
    other = traced.copy()
    assert run(QuantizeWeights(weights), traced.program).changed == 3
    for name, weight in weights.items():
        parts = [traced.tensors[f"{name}.{part}"] for part in weight.parts]
        w = torch.ops.mocomp.dequantize(parts, weight.format, weight.columns)
        other.tensors = other.tensors | {name: w if weight.inputs is None else w * traced.tensors[f"{name}.inputs"]}
    for found, expected in zip(traced.run(), other.run(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain = trace(Formula(formula, **SHAPES)).run()
    assert all((found - exact).abs().max() > 1e-2 for found, exact in zip(traced.run()[:2], plain[:2], strict=True))


def test_a_name_that_no_node_reads_changes_nothing(traced):
    before, names = op_names(traced.program), set(traced.program.recipes)
    assert run(QuantizeWeights({"elsewhere": packed(traced, "first")}), traced.program).changed == 0
    assert op_names(traced.program) == before and set(traced.program.recipes) == names


def test_floats_go_and_parts_come_once_whoever_reads_them(traced):
    """What an embedding still reads stays in floats, under a name that is not in the way of the parts'."""
    weights = {name: packed(traced, name) for name in ("head", "w_in")}
    assert run(QuantizeWeights(weights), traced.program).changed == 3  # two linear layers read the head
    parts = {f"{name}.{part}" for name, weight in weights.items() for part in weight.parts}
    left = {"first", "gate", "one_row", "w_out"}
    assert set(traced.program.recipes) == parts | left | {"head.floats"}
    assert {name for _, name in traced.program.weights()} == set(traced.program.recipes)
    assert len(calls(traced.program, MOCOMP.dequantize.default)) == 3
    (embedding,) = calls(traced.program, aten.embedding.default)
    assert isinstance(traced.program.recipe_of(embedding.args[0]), Named)
    assert torch.equal(traced.run()[2], trace(Formula(formula, **SHAPES)).run()[2])


def test_a_second_run_changes_nothing(traced):
    step = QuantizeWeights({name: packed(traced, name) for name in ("head", "w_in")})
    run(step, traced.program)
    before = op_names(traced.program)
    assert run(step, traced.program).changed == 0 and op_names(traced.program) == before


def test_which_weights_there_are(traced):
    """Neither the router, though its logits are scaled on the way, nor a gate of one row, nor a head that two layers read."""
    assert expert_weights(traced.program) == ["w_in", "w_out"] and list(banks(traced.program).values()) == [("w_in", "w_out")]
    assert dense_weights(traced.program) == ["first"]


@pytest.mark.parametrize(("names", "count"), [(["w_out"], 1), (["head"], 2), (["first", "w_in"], 2), (["gate"], 1), ([], 0)])
def test_which_nodes_read_them(traced, names, count):
    assert len(quantisable(traced.program, names)) == count
