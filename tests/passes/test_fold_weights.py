"""Layouts that are spelled in torch become recipes, with the same numbers and nothing left to do when the model runs."""

import torch

from mocomp.passes.clean import Clean
from mocomp.passes.fold_weights import FoldWeights
from mocomp.weights.recipes import Apply, Tensor
from tests.programs import Formula, op_names, rewrite, structure, trace

STEPS = (Clean(), FoldWeights())
BANK = {"gate_up": (4, 8, 6), "bias": (4, 6), "down": (4, 3, 8)}


def gpt_oss(m, x):
    """Experts stored transposed, with gate and up rows interleaved."""
    w = m.gate_up.transpose(1, 2)
    w = torch.cat([w[:, 0::2], w[:, 1::2]], 1)
    b = torch.cat([m.bias[:, 0::2], m.bias[:, 1::2]], 1)
    return torch.einsum("th,efh->etf", x, w) + b[:, None]


def test_a_transposed_interleaved_bank_becomes_two_weights():
    def after(m, x):
        return torch.einsum("th,efh->etf", x, m.gate_up) + m.bias

    program, receipt = rewrite(Formula(gpt_oss, **BANK), *STEPS)
    plain = trace(Formula(after, gate_up=(4, 6, 8), bias=(4, 1, 6))).program
    assert structure(program) == [
        line.replace("(gate_up)", "(gate_up, gate_up)").replace("(bias)", "(bias, bias)") for line in structure(plain)
    ]
    assert receipt.changed == 2 and len(program.recipes) == 2
    assert sorted(recipe.shape for recipe in program.recipes.values()) == [(4, 1, 6), (4, 6, 8)]


def test_parts_of_a_packed_weight_are_weights():
    def formula(m, x):
        gate, up = m.gate_up.chunk(2, 2)
        first, *_ = m.down.unbind()
        return x @ gate[0], x @ up[0], x @ m.gate_up.flatten(0, 1)[:8], x @ first.mT

    program, receipt = rewrite(Formula(formula, **BANK), *STEPS)
    assert receipt.changed == 4 and op_names(program) == ["matmul"] * 4
    assert sorted(recipe.shape for recipe in program.recipes.values()) == [(8, 3), (8, 3), (8, 3), (8, 6)]


def test_a_cast_is_written_and_not_computed():
    program, _ = rewrite(Formula(lambda m, x: x.double() @ m.w.double().T, w=(5, 8)), *STEPS)
    assert op_names(program) == ["to", "matmul"]
    assert [recipe.dtype for recipe in program.recipes.values()] == [torch.float64]


def test_a_weight_used_both_ways_is_kept_both_ways():
    program, receipt = rewrite(Formula(lambda m, x: (x @ m.w, x @ m.w.transpose(0, 1)), w=(8, 8)), *STEPS)
    assert receipt.changed == 1 and len(program.recipes) == 2
    assert isinstance(program.recipes["w"], Tensor)


def test_what_computes_is_left():
    """Each would be evaluated in memory as a whole, or be larger than what it is made of."""

    def formula(m, x):
        return x @ (m.w * 2), x + m.v.expand(8), x @ (m.w @ m.w)

    program, receipt = rewrite(Formula(formula, w=(8, 8), v=(1,)), *STEPS)
    assert receipt.changed == 0 and op_names(program).count("expand") == 1
    assert not any(isinstance(recipe, Apply) for recipe in program.recipes.values())


def test_inputs_are_no_weights():
    program, receipt = rewrite(Formula(lambda m, x: x.transpose(0, 1)), *STEPS)
    assert receipt.changed == 0 and op_names(program) == ["transpose"]


def test_a_scale_goes_into_the_weight_that_it_multiplies():
    """An expert's vector between activation and second product is columns of that product's weight."""
    program, receipt = rewrite(Formula(lambda m, x: x @ (m.w * m.v[:, None]), w=(8, 6), v=(8,)), *STEPS)
    assert receipt.changed == 1 and op_names(program) == ["matmul"]
    made = [recipe for recipe in program.recipes.values() if isinstance(recipe, Apply)]
    assert [recipe.shape for recipe in made] == [(8, 6)]
