"""The same thing is computed once, and only when it is the same thing."""

import torch

from mocomp.passes.clean import Clean
from mocomp.passes.common_subexpressions import CommonSubexpressions
from tests.programs import HIDDEN, Formula, op_names, rewrite, structure, trace

STEPS = (Clean(), CommonSubexpressions())


def test_equal_chains_become_one():
    def before(m, x):
        return torch.cat([(x @ m.w).exp(), x @ m.w], -1) + torch.cat([(x @ m.w).exp(), x @ m.w], -1)

    def after(m, x):
        y = x @ m.w
        both = torch.cat([y.exp(), y], -1)
        return both + both

    program, receipt = rewrite(Formula(before, w=(HIDDEN, HIDDEN)), *STEPS)
    assert structure(program) == structure(trace(Formula(after, w=(HIDDEN, HIDDEN))).program)
    assert receipt.changed == 5


def test_arguments_of_other_types_are_other_arguments():
    """1, 1.0 and True are equal in Python."""
    program, receipt = rewrite(Formula(lambda m, x: ((x > 0) * 1, (x > 0) * 1.0)), *STEPS)
    assert receipt.changed == 1 and op_names(program) == ["gt", "mul", "mul"]


def test_a_value_is_read_anew_after_it_was_written_to():
    def formula(m, x):
        y = x + 1
        before = y * 2
        y.add_(1)
        return before + y * 2

    program, receipt = rewrite(Formula(formula), *STEPS)
    assert receipt.changed == 0 and op_names(program).count("mul") == 2


def test_a_value_is_read_anew_after_a_view_of_it_was_written_to():
    def formula(m, x):
        y = x + 1
        seen = y.view(-1)
        before = seen * 2
        y[0].zero_()
        return before, seen * 2

    program, _ = rewrite(Formula(formula), *STEPS)
    assert op_names(program).count("mul") == 2


def test_two_values_of_which_one_is_written_to_stay_two():
    def formula(m, x):
        a, b = torch.zeros_like(x), torch.zeros_like(x)
        a.scatter_(1, x.argmax(-1, keepdim=True), 1.0)
        return a, b

    _, receipt = rewrite(Formula(formula), *STEPS)
    assert receipt.changed == 0


def test_what_was_computed_before_a_write_is_still_shared():
    """A write in a router must not keep the layers before it from being cleaned."""

    def formula(m, x):
        a, b = x.exp(), x.exp()
        return (a + b).clone().fill_(1.0) * a

    _, receipt = rewrite(Formula(formula), *STEPS)
    assert receipt.changed == 1


def test_random_numbers_are_drawn_each_time():
    traced = trace(Formula(lambda m, x: torch.rand_like(x) - torch.rand_like(x)))
    CommonSubexpressions().apply(traced.program)
    assert op_names(traced.program).count("rand_like") == 2
