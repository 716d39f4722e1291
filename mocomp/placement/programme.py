"""The integer programmes of a placement, solved by HiGHS.

After MoETuner (Go and Mahajan 2025, arXiv:2502.06643): experts go to ranks so that each rank's share of a layer's tokens is
bounded and as few tokens as possible change the rank between two layers. It clusters the experts of each layer first and then
gives clusters to ranks; here both are one programme. Dimension letters: E experts of a layer, N ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linear_sum_assignment, milp
from scipy.sparse import csr_matrix, vstack

GAP = 1e-6
"""Relative distance to the optimum at which one counts as found."""
ROUGH = 1e-3
"""The same for one layer among many."""
NODES, FEW = 2000, 20
"""Branches that are looked at for all layers, and for one. They are counted, not timed, so that everybody finds the same."""


@dataclass(frozen=True)
class Room:
    """What a rank may hold of one layer: `least` to `most` experts, with at most `load` of the layer's choices."""

    least: int
    most: int
    load: int


def chain(
    loads: Sequence[np.ndarray], steps: Sequence[np.ndarray], rooms: Sequence[Room], ranks: int, nodes: int = NODES
) -> tuple[list[np.ndarray] | None, bool]:
    """(the rank of each expert, layer by layer, with the most steps that stay on a rank; whether that is the optimum).

    A binary for each expert and rank; for each step that was seen, and each rank, a number that may be 1 where both ends are
    there. Ranks are alike, so expert e of the first layer is on one of the first e + 1. None where `nodes` branches did not
    suffice for any placement.
    """
    first = np.cumsum([0, *(len(load) * ranks for load in loads)])
    pairs = [(i, a, b, int(n[a, b])) for i, n in enumerate(steps) for a, b in zip(*np.nonzero(n), strict=True)]
    size = int(first[-1]) + len(pairs) * ranks
    limits = [_placed(load, room, ranks, int(first[i]), size) for i, (load, room) in enumerate(zip(loads, rooms, strict=True))]
    limits += [_ends(pairs, first, ranks, size, rooms)] if pairs else []
    cost = np.zeros(size)
    cost[first[-1] :] = -np.repeat([n for *_, n in pairs], ranks)
    upper = np.ones(size)
    for expert in range(min(ranks, len(loads[0]))):
        upper[expert * ranks + expert + 1 : (expert + 1) * ranks] = 0
    whole = np.zeros(size)
    whole[: first[-1]] = 1
    found = _solve(cost, [row for rows in limits for row in rows], whole, upper, nodes, GAP)
    if found.x is None:
        return None, False
    chosen = np.round(found.x[: first[-1]]).astype(int)
    parts = np.split(chosen, first[1:-1])
    return [part.reshape(-1, ranks).argmax(1) for part in parts], found.status == 0


def layer(gain: np.ndarray, load: np.ndarray, room: Room, nodes: int = FEW) -> np.ndarray | None:
    """The rank of each expert [E] of one layer with the largest sum of `gain` [E, N]; None where `nodes` branches did
    not suffice.

    Without the bound on loads it is an assignment of experts to places, which is solved at once, and mostly keeps the bound.
    """
    experts, ranks = gain.shape
    prize = np.zeros(room.most)  # places that have to be taken go first
    prize[: room.least] = 2 * np.abs(gain).sum() + 1
    _, taken = linear_sum_assignment(np.repeat(gain, room.most, 1) + np.tile(prize, ranks), maximize=True)
    loose = taken // room.most
    if np.bincount(loose, weights=load).max() <= room.load:
        return loose
    size = gain.size
    found = _solve(-gain.ravel(), _placed(load, room, ranks, 0, size), np.ones(size), np.ones(size), nodes, ROUGH)
    return None if found.x is None else np.round(found.x).reshape(experts, ranks).argmax(1)


def _placed(load: np.ndarray, room: Room, ranks: int, first: int, size: int) -> list[LinearConstraint]:
    """Each expert on one rank; each rank's number of experts, and its load, in bounds."""
    experts = len(load)

    def wide(rows: np.ndarray) -> csr_matrix:
        left, right = csr_matrix((len(rows), first)), csr_matrix((len(rows), size - first - experts * ranks))
        return csr_matrix(_beside(left, csr_matrix(rows), right))

    one, each = np.kron(np.eye(experts), np.ones(ranks)), np.kron(np.ones(experts), np.eye(ranks))
    return [
        LinearConstraint(wide(one), 1, 1),
        LinearConstraint(wide(each), room.least, room.most),
        LinearConstraint(wide(np.kron(load, np.eye(ranks))), ub=room.load),  # type: ignore[arg-type]
    ]


def _beside(*parts: csr_matrix) -> csr_matrix:
    return csr_matrix(vstack([part.T for part in parts]).T)


def _ends(
    pairs: list[tuple[int, int, int, int]], first: np.ndarray, ranks: int, size: int, rooms: Sequence[Room]
) -> list[LinearConstraint]:
    """What stays on a rank has both ends there; and from one expert, no more than the rank has room for at the other end.

    The second follows from the first where all is whole, and tells the solver much of the bound where it is not.
    """
    rows = np.arange(len(pairs) * ranks)
    own = first[-1] + rows
    ends = []
    for layer_on, which in ((0, 1), (1, 2)):
        at = np.array([first[pair[0] + layer_on] + pair[which] * ranks for pair in pairs])
        at = (at[:, None] + np.arange(ranks)).ravel()
        values = np.concatenate([np.ones(len(rows)), -np.ones(len(rows))])
        matrix = csr_matrix((values, (np.concatenate([rows, rows]), np.concatenate([own, at]))), shape=(len(rows), size))
        ends.append(LinearConstraint(matrix, ub=0))  # type: ignore[arg-type]
        experts, group = np.unique(at, return_inverse=True)
        layers = np.searchsorted(first, experts, side="right") - 1
        room = np.array([rooms[i + 1 if which == 1 else i - 1].most for i in layers])
        sums = csr_matrix((np.ones(len(rows)), (group, own)), shape=(len(experts), size))
        held = csr_matrix((room.astype(float), (np.arange(len(experts)), experts)), shape=sums.shape)
        ends.append(LinearConstraint(sums - held, ub=0))  # type: ignore[arg-type]
    return ends


def _solve(
    cost: np.ndarray, limits: list[LinearConstraint], whole: np.ndarray, upper: np.ndarray, nodes: int, gap: float
) -> OptimizeResult:
    options = {"node_limit": nodes, "mip_rel_gap": gap}
    return milp(cost, constraints=limits, integrality=whole, bounds=Bounds(0, upper), options=options)  # type: ignore[arg-type]
