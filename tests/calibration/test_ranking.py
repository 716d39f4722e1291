"""Which experts stay: groups that keep as many, budgets, dead experts, and what a router cannot choose from."""

import dataclasses
import json

import pytest

from mocomp.calibration.ranking import Ranked, kept_of, leaving, within, without_dead
from mocomp.errors import BadInput, Usage
from mocomp.fill.prune import pruned_plan
from mocomp.plans.mixtures import Found
from mocomp.plans.plan import MixturePlan


def plan(experts=(("text", 4), ("image", 3)), router="softmax_topk", k=2, **changes) -> MixturePlan:
    names = tuple(name for name, _ in experts)
    spec = json.dumps({"kind": router, "k": k} | changes)
    return MixturePlan("block", "dense", 8, 4, experts, tuple((name,) for name in names), spec, '{"kind": "glu"}')


def ranked(plan: MixturePlan) -> Ranked:
    """Experts of a worth that falls with their number, so that the last go first."""
    order = list(range(plan.experts))[::-1]
    return Ranked(Found(plan, {}, ()), order, {e: float(plan.experts - e) for e in order})


GROUPED = plan((("all", 8),), "sigmoid_topk", groups=4, groups_kept=2)
WIDE = plan((("all", 16),), "sigmoid_topk", groups=4, groups_kept=2)


def test_each_group_keeps_as_many():
    assert leaving(ranked(plan()), 3) == [0, 1, 2, 4, 5, 6]
    assert leaving(ranked(WIDE), 12) == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    assert kept_of(ranked(plan()), [2, 1], living=[3, 6]) == [0, 3, 6]
    made = pruned_plan(plan(), [0, 2, 5, 6])
    assert made.groups == (("text", 2), ("image", 2)) and made.experts == 4


@pytest.mark.parametrize(
    "of, number, reason",
    [
        (plan(), 1, "its router has to have 2"),
        (WIDE, 6, "do not make 4 groups of one size"),
        (GROUPED, 4, "its router has to have 8"),
    ],
)
def test_a_number_that_the_router_cannot_choose_from_is_refused(of, number, reason):
    with pytest.raises(Usage, match=reason):
        leaving(ranked(of), number)


def test_what_costs_least_goes_first_and_no_group_below_its_least():
    mixtures = [
        ranked(plan((("all", 4),))),
        dataclasses.replace(ranked(plan((("all", 4),))), cost=dict.fromkeys(range(4), 0.5)),
    ]
    assert within(mixtures, 3, lambda _: 1) == [[0, 1, 2], [0, 1]]
    assert within(mixtures, 4, lambda _: 1) == [[0, 1], [0, 1]]
    with pytest.raises(Usage, match="budget is less than"):
        within(mixtures, 5, lambda _: 1)
    (kept,) = within([ranked(WIDE)], 3, lambda _: 1)
    assert kept == [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]  # of even groups, one of each


def test_dead_experts_stay_where_the_router_needs_them():
    assert without_dead(ranked(plan()), [1, 2, 3]) == [0, 1, 4, 5, 6]
    assert without_dead(ranked(WIDE), [1, 2, 3, 5, 9, 13]) == [0, 1, 2, 4, 6, 7, 8, 10, 11, 12, 14, 15]
    with pytest.raises(BadInput, match="no token of the data comes to group image"):
        without_dead(ranked(plan()), [4, 5, 6])
