"""Whole blocks in many forms: recognised, proven at sizes that were not probed, traced; and what must not pass."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mocomp.models.recognition import canonical_block, measured, recognise
from mocomp.models.recognition.calls import record
from mocomp.models.recognition.mixture import PROVEN
from mocomp.models.recognition.probing import copied, in_float64
from tests.recognition.blocks import (
    HIDDEN,
    FeedForward,
    Fused,
    Gathered,
    Loop,
    Packed,
    SigmoidGroups,
    Sorted,
    Two,
    agree,
    built,
    example,
    no_norm,
    several,
)


def named():
    return nn.ModuleDict({f"expert_{i}": FeedForward(F.gelu, False, True) for i in range(5)})


def sequentials():
    return several(lambda: nn.Sequential(nn.Linear(HIDDEN, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, HIDDEN)), 3)


BLOCKS = {
    "a list": lambda: Loop(several(FeedForward)),
    "a dictionary": lambda: Loop(named()),
    "sequentials": lambda: Loop(sequentials()),
    "one expert a token": lambda: Loop(several(FeedForward), 1, no_norm),
    "all experts": lambda: Loop(several(FeedForward), 4),
    "not normalised": lambda: Loop(several(FeedForward), 3, no_norm),
    "more experts than hidden numbers": lambda: Loop(several(FeedForward, 20)),
    "gate and up in one": lambda: Loop(several(lambda: Fused("up even"))),
    "unequal widths": lambda: Loop(nn.ModuleList(FeedForward(bias=True, width=w) for w in (8, 12, 20))),
    "a dense part": lambda: Loop(several(FeedForward), rest=FeedForward(width=20)),
    "bmm of [E, in, out]": lambda: Packed(),
    "einsum of [E, out, in], square": lambda: Packed(False, True, width=HIDDEN),
    "no biases": lambda: Packed(bias=False),
    "gathered weights": Gathered,
    "sorted tokens, lists of products": lambda: Sorted(2),
    "sigmoid, bias, groups, scaling": SigmoidGroups,
    "sigmoid, not normalised": lambda: SigmoidGroups(groups=1, kept=1, normalize=False),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_is_recognised_and_right_at_other_sizes(name):
    block = built(BLOCKS[name])
    before = {key: value.clone() for key, value in block.state_dict().items()}
    recognition = recognise(block, [{"x": example(2, 5)}])
    (found,) = recognition.blocks
    assert (found.name, found.how, recognition.refused) == ("", "mixture", []) and found.error < PROVEN
    agree(block, recognition, 3, 17)
    assert all(torch.equal(value, before[key]) for key, value in block.state_dict().items())
    assert "forward" not in vars(block)


@pytest.mark.parametrize("name", ["a list", "gathered weights", "unequal widths", "sigmoid, bias, groups, scaling"])
def test_a_canonical_block_is_traced_for_any_size(name):
    block = built(BLOCKS[name])
    recognition = recognise(block, [{"x": example(2, 5)}])
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    with torch.no_grad():
        with recognition.install(block):
            exported = torch.export.export(block, (example(2, 5),), dynamic_shapes=(sizes,), strict=False)
        names = [str(node.target) for node in exported.graph.nodes]
        assert names.count("mocomp.route.default") == names.count("mocomp.experts.default") == 1
        x = example(3, 8, 2)
        torch.testing.assert_close(exported.module()(x), block(x), rtol=1e-4, atol=1e-5)


def proof_of(block):
    """(the block in float64, its canonical form, draws)."""
    (found,) = recognise(block, [{"x": example(2, 5)}]).blocks
    with in_float64():
        trial = copied(block)
        (call,) = record(trial, [{"x": example(2, 5)}], [""])[""]
        return trial, found.form, measured.draws(trial, call, found.form.port, found.form.experts.count)


def test_the_last_proof_tells_a_wrong_form():
    """Each fault is planted in a form that is right."""
    trial, form, draws = proof_of(built(SigmoidGroups))
    kind, route = form.kind, form.routing
    swapped = replace(kind, roles=replace(kind.roles, gate=kind.roles.up, up=kind.roles.gate))
    faults = {
        "gate and up swapped": replace(form, kind=swapped),
        "another activation": replace(form, kind=replace(kind, expert=replace(kind.expert, activation="gelu_tanh"))),
        "2.4 for 2.5": replace(form, routing=replace(route, router=replace(route.router, scale=2.4))),
        "one group more": replace(form, routing=replace(route, router=replace(route.router, groups_kept=3))),
        "not normalised": replace(form, routing=replace(route, router=replace(route.router, normalize=False))),
        "no bias": replace(form, routing=replace(route, tensors=())),
        "a factor": replace(form, routing=replace(route, factor=1.0001)),
    }
    with in_float64():
        assert canonical_block.error(trial, form, draws) < 1e-9
        for name, fault in faults.items():
            assert canonical_block.error(trial, fault, draws) > PROVEN, name


def test_what_was_remembered_of_another_block_is_not_trusted():
    """Two blocks of one class and one set of shapes, of which one scales by 2.5 and one by 2.4, one gelu and one tanh's."""
    gelu_tanh = lambda x: F.gelu(x, approximate="tanh")  # noqa: E731
    first, second = built(lambda: SigmoidGroups(scaling=2.5)), built(lambda: SigmoidGroups(scaling=2.4))
    for expert in second.experts:
        expert.act = gelu_tanh
    blocks = recognise(Two(first, second), [{"x": example(2, 5)}]).blocks
    assert [found.router.scale for found in blocks] == [2.5, 2.4]
    assert [found.expert.activation for found in blocks] == ["silu", "gelu_tanh"]


def test_a_router_that_nobody_knows_is_refused_with_the_nearest():
    def squared(z, k):
        ids, weights = no_norm(z, k)
        return ids, weights * (1 + weights)

    recognition = recognise(built(lambda: Loop(several(FeedForward), 2, squared)), [{"x": example(2, 5)}])
    (missed,) = recognition.refused
    assert not recognition.blocks and "no known router does this; the nearest, {" in missed.reason
    assert PROVEN < missed.error < 1


class Choosing(Loop):
    """One class for two ways to route, told apart by a setting alone."""

    def __init__(self, squares):
        super().__init__(several(FeedForward))
        self.squares = squares
        self.route = self.either

    def either(self, z, k):
        ids, weights = no_norm(z, k)
        return ids, weights * (1 + weights) if self.squares else weights


def test_blocks_that_were_refused_say_nothing_of_others_of_their_class():
    layers = [Choosing(squares) for squares in (True, True, True, False, True)]
    recognition = recognise(built(lambda: nn.Sequential(*layers)), [{"input": example(2, 5)}])
    assert [found.name for found in recognition.blocks] == ["3"]
    assert sorted(missed.name for missed in recognition.refused) == ["0", "1", "2", "4"]
