"""Mixed precision: the format of each weight so that all fit into a number of bytes and the error is least.

This is the multiple-choice knapsack problem. Its Lagrangian relaxation, a price per byte, is solved by bisection and bounds
the least cost from below, which rules out most choices (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter
11). HiGHS solves what is left as an integer programme; costs of very different magnitude are then no longer in one programme.
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from mocomp.errors import BadInput, Usage

HALVINGS = 200
"""Of the interval in which the price is sought: as many as the magnitudes of a float64 ask for."""
SCALE = 1e4
"""What the costs that HiGHS sees reach, as it takes differences of 1e-6 for none."""
PRECISION = 1e-4
"""Of the cost: an answer proven to be this close to the best is taken for it, as measured errors are less exact by far.
Relaxation alone comes this close where units are thousands; few ask for the integer programme, which goes further."""
NODES = 20_000
"""Where HiGHS stops searching; what it has by then is taken."""


@dataclass(frozen=True)
class Choice:
    """One way to store a unit: `cost` is the error that it makes, in any one measure that adds up over units."""

    format: str
    nbytes: int
    cost: float


Units = dict[str, list[Choice]]


def smallest(units: Units, ties: Sequence[Sequence[str]] = ()) -> int:
    """The fewest bytes that the units can be stored in. Raises Usage where units of a tie have no format in common."""
    return sum(min(choice.nbytes for choice in choices) for choices in _tied(units, ties).values())


def solve(units: Units, budget: int, ties: Sequence[Sequence[str]] = ()) -> dict[str, str]:
    """The format of each unit: together at most `budget` bytes, at the least sum of costs; units of a tie take the same.

    The formats of one unit differ. Bytes are counted in integers, and what is returned never exceeds the budget. The cost is
    the least there is up to `PRECISION`, and the same units give the same answer. Raises Usage with the
    smallest budget that can be met where this one cannot, BadInput for costs that are no numbers.
    """
    groups = _tied(units, ties)
    least = smallest(units, ties)
    if budget < least:
        raise Usage(
            f"no choice of formats fits into {budget:,} bytes", fix=f"The smallest budget that can be met is {least:,} bytes."
        )
    cost, size = _tables(list(groups.values()))
    chosen = _knapsack(cost, size, budget - least)
    picked = {name: choices[i].format for (names, choices), i in zip(groups.items(), chosen, strict=True) for name in names}
    return {name: picked[name] for name in units}


def _tied(units: Units, ties: Sequence[Sequence[str]]) -> dict[tuple[str, ...], list[Choice]]:
    """Units that take the same format as one, with the formats that all of them have."""
    group_of = {name: [name] for name in units}
    for tie in ties:
        if unknown := [name for name in tie if name not in units]:
            raise Usage(f"{unknown[0]!r} is tied to others and is no unit")
        members = list(dict.fromkeys(member for name in tie for member in group_of[name]))
        group_of |= dict.fromkeys(members, members)
    return {tuple(members): _together(members, units) for name, members in group_of.items() if members[0] == name}


def _together(names: list[str], units: Units) -> list[Choice]:
    known = [{choice.format: choice for choice in units[name]} for name in names]
    if bad := [name for name in names if not all(math.isfinite(choice.cost) for choice in units[name])]:
        raise BadInput("the cost of a format is not a finite number", where=bad[0])
    common = [format for format in known[0] if all(format in choices for choices in known)]
    if not common:
        raise Usage(f"{', '.join(names)} have to take the same format, and have none in common")
    return [Choice(f, sum(c[f].nbytes for c in known), sum(c[f].cost for c in known)) for f in common]


def _tables(groups: list[list[Choice]]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Costs [U, C] and bytes [U, C] above the least of each unit, rows filled up with choices of infinite cost."""
    most = max(map(len, groups), default=1)
    cost, size = np.full((len(groups), most), np.inf), np.zeros((len(groups), most), np.int64)
    for row, choices in enumerate(groups):
        cost[row, : len(choices)] = [choice.cost for choice in choices]
        size[row, : len(choices)] = [choice.nbytes for choice in choices]
        size[row, : len(choices)] -= size[row, : len(choices)].min()
    return cost - cost.min(1, keepdims=True, initial=np.inf), size


def _knapsack(cost: NDArray[np.float64], size: NDArray[np.int64], room: int) -> NDArray[np.int64]:
    """The choice [U] of each unit, of least cost and at most `room` bytes; each has one of no bytes."""
    price = _price(cost, size, room)
    priced = cost + price * size
    start = _improved(cost, size, room, priced.argmin(1))
    gap = _of(cost, start).sum() - (priced.min(1).sum() - price * room)
    if gap <= PRECISION * _of(cost, start).sum():
        return start
    open_ = priced - priced.min(1, keepdims=True) <= gap
    best = _core(cost, size, room, start, open_ & (open_.sum(1) > 1)[:, None])
    return min(start, best, key=lambda chosen: _of(cost, chosen).sum())


def _price(cost: NDArray[np.float64], size: NDArray[np.int64], room: int) -> float:
    """The lowest price per byte at which units that each minimise cost plus price keep within `room`."""
    if _of(size, cost.argmin(1)).sum() <= room:
        return 0.0
    low, high = 0.0, 2 * max(cost[np.isfinite(cost)].max(), 1.0) / size[size > 0].min()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = _of(size, (cost + middle * size).argmin(1)).sum() <= room
        low, high = (low, middle) if fits else (middle, high)
    return high


def _improved(cost: NDArray[np.float64], size: NDArray[np.int64], room: int, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """As long as one unit can do better with what room is left, the one that gains most does."""
    chosen = chosen.copy()
    while True:
        left = room - _of(size, chosen).sum()
        gain = _of(cost, chosen)[:, None] - cost
        gain[size - _of(size, chosen)[:, None] > left] = 0.0
        if gain.size == 0 or gain.max() <= 0:
            return chosen
        row, choice = np.unravel_index(gain.argmax(), gain.shape)
        chosen[row] = choice


def _core(
    cost: NDArray[np.float64], size: NDArray[np.int64], room: int, start: NDArray[np.int64], open_: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """The integer programme over the open choices [U, C]; units that have none stay at `start`."""
    rows, choices = np.nonzero(open_)
    if len(rows) == 0:
        return start
    free, inverse = np.unique(rows, return_inverse=True)
    room -= int(_of(size, start).sum() - _of(size, start)[free].sum())
    bytes_, costs = size[rows, choices], cost[rows, choices]
    unit = max(int(np.gcd.reduce(bytes_)), 1)
    one_each = LinearConstraint(csr_array((np.ones(len(rows)), (inverse, np.arange(len(rows))))), 1, 1)
    while room >= 0:
        fits = LinearConstraint((bytes_ // unit)[None].astype(float), -np.inf, room // unit)
        with _quiet():
            result = milp(
                costs / max(costs.max(), np.finfo(float).tiny) * SCALE,
                integrality=np.ones(len(rows)),
                bounds=Bounds(0, 1),
                constraints=[one_each, fits],
                options={"mip_rel_gap": PRECISION / 100, "node_limit": NODES},
            )
        if result.x is None:
            return start
        taken = result.x > 0.5
        over = int(bytes_[taken].sum()) - room
        if over <= 0:
            best = start.copy()
            best[rows[taken]] = choices[taken]
            return best
        room -= over  # HiGHS takes a millionth of the room for nothing; the budget does not
    return start


@contextmanager
def _quiet() -> Iterator[None]:
    """HiGHS writes to the process's standard output what no option silences (jump-dev/HiGHS.jl#312), and the command line
    promises that nothing but its JSON is there."""
    flush = ctypes.CDLL(None).fflush
    flush(None)
    saved, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        flush(None)
        os.dup2(saved, 1)
        os.close(saved)
        os.close(nowhere)


def _of(table: NDArray, chosen: NDArray[np.int64]) -> NDArray:
    return np.take_along_axis(table, chosen[:, None], 1)[:, 0]
