"""Rotary embeddings of two equal halves become one op; other rotations stay."""

import pytest
import torch

from mocomp.passes.clean import Clean
from mocomp.passes.fuse_rotary import FuseRotary
from tests.programs import Formula, op_names, rewrite

STEPS = (Clean(), FuseRotary())
HEADS, WIDTH = 2, 4


def queries(m, x):
    """x [T, H] as [T, N, S=1, D]."""
    return x.view(-1, HEADS, 1, WIDTH)


def half_turn(q):
    return torch.cat([-q[..., WIDTH // 2 :], q[..., : WIDTH // 2]], -1)


def angles(m, unequal=False):
    halves = [m.frequencies, m.frequencies + 1 if unequal else m.frequencies]
    both = torch.cat(halves, -1).view(1, 1, 1, WIDTH)
    return both.cos() * 1.5, both.sin() * 1.5


def rotated(m, x, unequal=False, flipped=False):
    q, (cos, sin) = queries(m, x), angles(m, unequal)
    return q * cos + half_turn(q) * (sin.flip(-1) if flipped else sin)


def unsqueezed(m, x):
    """As transformers spells it: angles [B, S, D], a dimension for the heads put in between."""
    q = queries(m, x)
    both = torch.cat([m.frequencies[None, None]] * 2, -1)
    cos, sin = (angle.unsqueeze(1) for angle in (both.cos(), both.sin()))
    return (q * cos) + (half_turn(q) * sin)


def test_a_rotation_is_one_op():
    program, receipt = rewrite(Formula(unsqueezed, frequencies=(WIDTH // 2,)), *STEPS)
    assert receipt.changed == 1 and "rotary" in op_names(program) and "neg" not in op_names(program)


@pytest.mark.parametrize("how", [{"unequal": True}, {"flipped": True}], ids=str)
def test_angles_that_are_not_the_same_twice_are_left_with_the_reason(how):
    _, receipt = rewrite(Formula(lambda m, x: rotated(m, x, **how), frequencies=(WIDTH // 2,)), *STEPS)
    assert receipt.changed == 0 and "not the same twice" in receipt.skipped[0]


def interleaved(m, x):
    q, (cos, sin) = queries(m, x), angles(m)
    pairs = torch.stack([-q[..., 1::2], q[..., 0::2]], -1).flatten(-2)
    return q * cos + pairs * sin


def backwards(m, x):
    """The other direction: minus stands at the other half."""
    q, (cos, sin) = queries(m, x), angles(m)
    return q * cos + torch.cat([q[..., WIDTH // 2 :], -q[..., : WIDTH // 2]], -1) * sin


def uneven(m, x):
    q, (cos, sin) = queries(m, x), angles(m)
    return q * cos + torch.cat([-q[..., 1:], q[..., :1]], -1) * sin


def of_few_dimensions(m, x):
    q, (cos, sin) = queries(m, x), (angle.flatten() for angle in angles(m))
    return q * cos + half_turn(q) * sin


@pytest.mark.parametrize("formula", [interleaved, backwards, uneven, of_few_dimensions], ids=lambda formula: formula.__name__)
def test_other_rotations_are_left(formula):
    program, receipt = rewrite(Formula(formula, frequencies=(WIDTH // 2,)), *STEPS)
    assert receipt.changed == 0 and "neg" in op_names(program)
