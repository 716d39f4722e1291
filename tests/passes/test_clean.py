"""What a trace holds and nobody needs goes; what only looks that way stays."""

import torch
from torch.nn.functional import dropout

from mocomp.passes.clean import Clean
from tests.programs import HIDDEN, Formula, op_names, rewrite, structure, trace


def test_what_does_nothing_goes():
    def before(m, x):
        y = dropout(x.to(torch.float32) + m.w, 0.5, training=False)
        torch.exp(y)  # nobody asks
        return (y[:].contiguous().detach() * m.w).type_as(x)

    def after(m, x):
        return (x + m.w) * m.w

    program, receipt = rewrite(Formula(before, w=(HIDDEN,), unused=(3, 3)), Clean())
    assert structure(program) == structure(trace(Formula(after, w=(HIDDEN,))).program)
    assert op_names(program) == ["add", "mul"] and receipt.changed >= 7
    assert program.recipes.keys() == {"w"}


def test_what_does_something_stays():
    def formula(m, x):
        return x.to(torch.float64)[1:], x[:, ::2], x[:, 2:], x.half().float()

    program, _ = rewrite(Formula(formula), Clean())
    assert op_names(program) == ["to", "slice", "slice", "slice", "to", "to"]


def test_a_copy_that_is_written_to_stays():
    """`b` shares the memory of `a` or does not, and only the op knows."""

    def formula(m, x):
        a = (x * 2).T
        b = a.contiguous()
        b.view(-1).add_(1)
        return a, b

    program, _ = rewrite(Formula(formula), Clean())
    assert "contiguous" in op_names(program)


def test_a_constant_that_is_written_to_stays_one():
    """Without its copy, every run would find the constant as the last one left it."""

    def formula(m, x):
        total = torch.tensor([0.0, 1.0])
        total[:1].add_(x.sum())
        return total * 1

    traced = trace(Formula(formula))
    expected = traced.run()
    Clean().apply(traced.program)
    assert torch.equal(traced.run()[0], expected[0]) and torch.equal(traced.run()[0], expected[0])
