"""Formats under a budget are the best there are, by trying all, and never exceed it."""

import ctypes
import itertools
import random
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from scipy.optimize import LinearConstraint

from mocomp.errors import BadInput, Usage
from mocomp.quant import budget
from mocomp.quant.budget import Choice, Units, smallest, solve

FORMATS = ("int2", "int4", "mxfp4", "fp8", "bfloat16")


def bill(units: Units, chosen: dict[str, str]) -> tuple[int, float]:
    """Bytes and cost of a format for each unit."""
    taken = [next(choice for choice in units[name] if choice.format == format) for name, format in chosen.items()]
    return sum(choice.nbytes for choice in taken), sum(choice.cost for choice in taken)


def by_trying_all(units: Units, limit: int, ties: list[list[str]]) -> float | None:
    """The least cost of all combinations that fit, None where none does."""
    costs = []
    for combination in itertools.product(*units.values()):
        chosen = dict(zip(units, (choice.format for choice in combination), strict=True))
        if all(len({chosen[name] for name in tie}) == 1 for tie in ties):
            nbytes, cost = bill(units, chosen)
            costs += [cost] if nbytes <= limit else []
    return min(costs, default=None)


@st.composite
def problems(draw):
    """(units, budget, ties): sizes up to 1e12 bytes, costs over 18 orders of magnitude, some of them alike."""
    number = draw(st.integers(1, 5))
    nbytes = st.integers(0, draw(st.sampled_from([5, 1000, 10**12])))
    exponents = st.floats(*draw(st.sampled_from([(0.0, 1.0), (-12.0, 6.0)])))
    costs = st.one_of(st.sampled_from([0.0, 1.0]), exponents.map(lambda exponent: 10**exponent))
    choices = st.lists(st.sampled_from(FORMATS), min_size=1, max_size=4, unique=True).flatmap(
        lambda names: st.tuples(*(st.builds(Choice, st.just(name), nbytes, costs) for name in ["int4", *names[1:]]))
    )
    units = {f"layer {i}": list({c.format: c for c in draw(choices)}.values()) for i in range(number)}
    ties = draw(st.lists(st.lists(st.sampled_from(sorted(units)), min_size=1, max_size=3, unique=True), max_size=2))
    most = sum(max(choice.nbytes for choice in choices) for choices in units.values())
    return units, draw(st.integers(0, most)), ties


@settings(deadline=None, max_examples=150)
@given(problems())
def test_none_is_better_of_all_that_fit(problem):
    units, limit, ties = problem
    expected = by_trying_all(units, limit, ties)
    if expected is None:
        assert smallest(units, ties) > limit
        with pytest.raises(Usage, match="fits into"):
            solve(units, limit, ties)
        return
    chosen = solve(units, limit, ties)
    nbytes, cost = bill(units, chosen)
    assert list(chosen) == list(units) and nbytes <= limit
    assert all(len({chosen[name] for name in tie}) == 1 for tie in ties)
    assert cost == pytest.approx(expected, rel=budget.PRECISION, abs=0)
    assert solve(units, limit, ties) == chosen


def two_sizes() -> Units:
    """The best price per byte is that of a small unit, and taking it leaves too little for the large one."""
    return {
        "small": [Choice("int4", 0, 12.0), Choice("fp8", 6, 0.0)],
        "large": [Choice("int4", 0, 15.0), Choice("fp8", 10, 0.0)],
    }


def test_what_gains_most_per_byte_need_not_be_best():
    assert solve(two_sizes(), 10) == {"small": "int4", "large": "fp8"}
    assert solve(two_sizes(), 9) == {"small": "fp8", "large": "int4"}
    assert solve(two_sizes(), 16) == {"small": "fp8", "large": "fp8"}


def test_the_integer_programme_is_what_finds_it(monkeypatch):
    """Without it the relaxation's answer is returned, which is not the best here."""
    units = {f"layer {i}": [Choice("int4", 0, cost), Choice("fp8", size, 0.0)] for i, (size, cost) in enumerate(KNAPSACK)}
    best = by_trying_all(units, 50, [])
    assert bill(units, solve(units, 50))[1] == best
    monkeypatch.setattr(budget, "_core", lambda cost, size, room, start, open_: start)
    assert bill(units, solve(units, 50))[1] > best


KNAPSACK = ((31, 70.0), (10, 20.0), (20, 39.0), (19, 37.0), (4, 7.0), (3, 5.0), (6, 10.0))
"""Bytes and the cost without them; what has the best price, the first, is not part of the best 50."""


def test_what_is_tied_takes_the_same():
    units = {name: [Choice("int4", 4, cost), Choice("fp8", 8, 0.0)] for name, cost in (("q", 9.0), ("k", 1.0), ("v", 5.0))}
    assert solve(units, 16) == {"q": "fp8", "k": "int4", "v": "int4"}
    assert solve(units, 20, [["k", "v"]]) == {"q": "fp8", "k": "int4", "v": "int4"}
    assert solve(units, 23, [["q", "k"], ["k", "v"]]) == dict.fromkeys(units, "int4")
    assert solve(units, 24, [["q", "k"], ["k", "v"]]) == dict.fromkeys(units, "fp8")


def test_a_tie_leaves_what_all_of_it_can_take():
    units = {"up": [Choice("int4", 4, 9.0), Choice("fp8", 8, 0.0)], "down": [Choice("int2", 2, 50.0), Choice("int4", 4, 9.0)]}
    assert solve(units, 100, [["up", "down"]]) == {"up": "int4", "down": "int4"}
    assert (smallest(units), smallest(units, [["up", "down"]])) == (6, 8)
    with pytest.raises(Usage, match="up, down have to take the same format"):
        solve({**units, "up": [Choice("fp8", 8, 0.0)]}, 100, [["up", "down"]])
    with pytest.raises(Usage, match="'gate' is tied"):
        solve(units, 100, [["up", "gate"]])


def test_a_budget_that_cannot_be_met_names_one_that_can():
    units = {name: [Choice("int4", 700, 1.0), Choice("int2", 550, 9.0)] for name in "abc"}
    with pytest.raises(Usage, match=r"1,649 bytes[^1]*1,650 bytes"):
        solve(units, 1649)
    assert set(solve(units, 1650).values()) == {"int2"}


def test_costs_that_are_no_numbers_are_refused():
    with pytest.raises(BadInput, match="down: the cost"):
        solve({"up": [Choice("int4", 4, 1.0)], "down": [Choice("int4", 4, float("nan"))]}, 100)


def test_nothing_has_no_formats():
    assert solve({}, 0) == {} and smallest({}) == 0


def test_one_byte_too_many_in_a_million_millions_is_too_many():
    """HiGHS would let it pass: it takes less than 1e-6 for nothing."""
    units = {name: [Choice("int4", 10**12, 5.0), Choice("fp8", 2 * 10**12 + odd, 0.0)] for name, odd in (("a", 0), ("b", 1))}
    assert set(solve(units, 4 * 10**12 + 1).values()) == {"fp8"}
    assert sorted(solve(units, 4 * 10**12).values()) == ["fp8", "int4"]


def test_what_the_solver_takes_for_nothing_is_not_spent(monkeypatch):
    """A solver that exceeds the room by up to 4 bytes is asked again for less."""
    units = {f"layer {i}": [Choice("int4", 0, cost), Choice("fp8", size, 0.0)] for i, (size, cost) in enumerate(KNAPSACK)}
    exact, asked = budget.milp, []

    def lax(costs, constraints, **options):
        one_each, fits = constraints
        asked.append(fits.ub)
        return exact(costs, constraints=[one_each, LinearConstraint(fits.A, ub=fits.ub + 4)], **options)

    monkeypatch.setattr(budget, "milp", lax)
    assert bill(units, solve(units, 50))[0] <= 50
    assert len(asked) > 1 and asked == sorted(asked, reverse=True)


def test_what_the_solver_prints_is_not_seen(capfd):
    """Also what C still holds in its buffer."""
    write = ctypes.CDLL(None).puts
    with budget._quiet():
        write(b"transformNewIntegerFeasibleSolution")
    write(b"after")
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == "after\n"


def large_model(layers: int) -> Units:
    """Three projections of each layer; sizes of two kinds, costs that differ by 1e3."""
    generator = random.Random(0)
    units = {}
    for layer, projection in itertools.product(range(layers), ("gate", "up", "down")):
        weights, importance = generator.choice([1 << 24, 3 << 24]), 10 ** generator.uniform(-3, 0)
        units[f"{layer}.{projection}"] = [
            Choice(format, int(weights * bits / 8), importance * error * generator.uniform(0.8, 1.2))
            for format, bits, error in zip(FORMATS, (2.5, 4.5, 4.25, 8.25, 16), (1, 0.1, 0.12, 1e-3, 0), strict=True)
        ]
    return units


def test_a_model_of_48_layers():
    """Better than one format for all at the bytes of that."""
    units = large_model(48)
    limit, uniform = bill(units, dict.fromkeys(units, "int4"))
    start = time.perf_counter()
    nbytes, cost = bill(units, solve(units, limit))
    seconds = time.perf_counter() - start
    assert nbytes <= limit and cost < uniform / 2
    print(f"{len(units)} units of {len(FORMATS)} formats in {seconds:.3f} s: cost {cost / uniform:.3f} of int4 for all")
