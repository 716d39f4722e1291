"""RMS norms become one op; what is almost one stays, with the reason."""

import pytest
import torch

from mocomp.passes.clean import Clean
from mocomp.passes.fuse_norms import FuseNorms
from tests.programs import HIDDEN, Formula, op_names, rewrite

STEPS = (Clean(), FuseNorms())


def norm(x, dim=-1, epsilon=1e-6):
    return x * torch.rsqrt(x.pow(2).mean(dim, keepdim=True) + epsilon)


def norm_twice(x, weight):
    y = norm(x)
    return y * weight + y


FUSED = {
    "weight first": lambda m, x: m.w * norm(x),
    "weight last": lambda m, x: norm(x) * m.w,
    "square factor first": lambda m, x: m.w * (torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * x),
    "with a cast that does nothing": lambda m, x: m.w * norm(x.float()).to(x.dtype),
    "one added to the weight": lambda m, x: norm(x) * (1.0 + m.w),
}
LEFT = {
    "no epsilon": (lambda m, x: m.w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True))), "no constant is added"),
    "other dimension": (lambda m, x: m.w * norm(x, 0), "not the mean over the last dimension"),
    "a cube": (lambda m, x: m.w * (x * torch.rsqrt(x.abs().pow(3).mean(-1, keepdim=True) + 1e-6)), "not the mean of a square"),
    "no weight": (lambda m, x: norm(x) + m.w, "it has no weight"),
    "another input": (lambda m, x: m.w * (x.exp() * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)), "not scaled by it"),
    "a square weight": (lambda m, x: norm(x) * (x * m.w), "its weight is not a vector"),
    "used in between": (lambda m, x: norm_twice(x, m.w), "it has no weight"),
}


@pytest.mark.parametrize("name", FUSED)
def test_a_norm_is_one_op(name):
    program, receipt = rewrite(Formula(FUSED[name], w=(HIDDEN,)), *STEPS)
    assert receipt.changed == 1 and "rms_norm" in op_names(program) and "rsqrt" not in op_names(program)


@pytest.mark.parametrize("name", LEFT)
def test_what_is_none_is_left_with_the_reason(name):
    formula, reason = LEFT[name]
    program, receipt = rewrite(Formula(formula, w=(HIDDEN,)), *STEPS)
    assert receipt.changed == 0 and "rsqrt" in op_names(program)
    assert reason in receipt.skipped[0]
