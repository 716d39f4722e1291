"""Which experts a mixture can do without, and which stay when it has to.

Dimension letters: M modalities, E experts, H hidden.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain

import torch

from mocomp import terminal
from mocomp.calibration.ablation import Ablation
from mocomp.calibration.usage import Counted
from mocomp.errors import BadInput, Usage
from mocomp.fill.prune import cells_of, least, routed_groups
from mocomp.plans.mixtures import Found
from mocomp.weights.recipes import Reader

ROUNDS = 32
"""How often the experts that are left are compared anew, at most, on the way from all of them to as few as can be."""


BEYOND = "the budget is less than what is left when every layer has as few experts as its router can choose from"


@dataclass(frozen=True)
class Ranked:
    """A mixture and its experts, the least worth first, with the cost [E] of each as removed in that order."""

    found: Found
    order: list[int]
    cost: dict[int, float]

    @property
    def cells(self) -> list[list[int]]:
        """`cells_of` its plan."""
        return cells_of(self.found.plan)

    @property
    def even(self) -> bool:
        """Whether all cells have to keep as many."""
        return routed_groups(self.found.plan) > 1


def ranked(found: Found, worth: torch.Tensor) -> Ranked:
    """By a worth [E] that no other expert changes."""
    return Ranked(found, worth.argsort(stable=True).tolist(), dict(enumerate(worth.tolist())))


def by_usage(found: Found, counted: Counted) -> Ranked:
    """By the share of weight that experts are given; every modality that has tokens counts alike, however many they are."""
    share = counted.share
    return ranked(found, share[share.any(1)].mean(0))


def by_router_norm(found: Found, read: Reader) -> Ranked:
    """By the length of an expert's row of the router, of all its rows where it has several."""
    rows = found.weights["router.weight"].evaluate(read).double()
    norms = rows.pow(2).sum(1).reshape(-1, found.plan.experts).sum(0).sqrt()
    return ranked(found, norms / norms.sum())


def by_output_error(found: Found, ablation: Ablation) -> Ranked:
    """Greedily: the next to go is the expert without which the output is nearest to that of the whole mixture.

    Where the router's groups have to stay even no expert can go alone, and each counts by what it adds to the output.
    """
    if routed_groups(found.plan) > 1:
        return ranked(found, ablation.contributions().pow(2))
    kept, order, before = list(range(found.plan.experts)), [], 0.0
    cost = dict.fromkeys(kept, float("inf"))
    floors = [(set(cell), least(found.plan, cell)) for cell in cells_of(found.plan)]
    at_once = max(found.plan.experts // ROUNDS, 1)
    while candidates := [e for cell, floor in floors if len(cell & set(kept)) > floor for e in sorted(cell & set(kept))]:
        errors = {e: ablation.error([other for other in kept if other != e]) for e in candidates}
        for e in sorted(candidates, key=lambda e: errors[e])[:at_once]:
            if any(e in cell and len(cell & set(kept)) <= floor for cell, floor in floors):
                continue
            kept.remove(e)
            order.append(e)
            cost[e] = max(errors[e] ** 2 - before, 0.0)
        before = ablation.error(kept) ** 2
    return Ranked(found, order + kept, cost)


def rank(mixtures: list[Found], by: str, read: Reader, counted: Callable[[Found], Counted]) -> list[Ranked]:
    """Mixtures with their experts in order, by usage, router_norm or output_error; `counted` is not asked for the second."""
    if by == "router_norm":
        return [by_router_norm(found, read) for found in mixtures]
    if by == "usage":
        return [by_usage(found, counted(found)) for found in mixtures]
    made = []
    with terminal.progress("output error", len(mixtures), "layers") as advance:
        for found in mixtures:
            made.append(by_output_error(found, Ablation(found, read, counted(found).seen)))
            advance(1)
    return made


def leaving(mixture: Ranked, number: int) -> list[int]:
    """The experts that stay when there are to be `number` of them in each group; where the router has groups of its own,
    in all. Raises Usage for a number that cannot be."""
    cells, where = mixture.cells, mixture.found.enter
    share, rest = divmod(number, len(cells)) if mixture.even else (number, 0)
    if rest:
        fix = f"Say a multiple of {len(cells)}."
        raise Usage(f"{number} experts do not make {len(cells)} groups of one size, as its router has", where=where, fix=fix)
    floor = max(least(mixture.found.plan, cell) for cell in cells)
    if share < floor:
        lowest = floor * (len(cells) if mixture.even else 1)
        fix = f"Say --experts {lowest} or more."
        raise Usage(f"{number} experts, and its router has to have {lowest} to choose from", where=where, fix=fix)
    return kept_of(mixture, [share] * len(cells))


def kept_of(mixture: Ranked, numbers: Sequence[int], living: Collection[int] = ()) -> list[int]:
    """The experts that stay, so many of each cell: the `living` first, and then those that are worth most."""
    worth = {e: (e in living, rank) for rank, e in enumerate(mixture.order)}
    best = [sorted(cell, key=lambda e: worth[e], reverse=True) for cell in mixture.cells]
    return sorted(e for cell, number in zip(best, numbers, strict=True) for e in cell[:number])


def without_dead(mixture: Ranked, dead: Collection[int]) -> list[int]:
    """The living experts, and of dead ones no more than the router needs. Raises BadInput where a whole group looks dead."""
    living = [[e for e in cell if e not in dead] for cell in mixture.cells]
    if not mixture.even and not all(living):
        group = mixture.found.plan.groups[living.index([])][0]
        raise BadInput(
            f"no token of the data comes to group {group}, so nothing says which of its experts are dead",
            where=mixture.found.enter,
            fix="Give data with tokens of every modality.",
        )
    numbers = [max(len(alive), least(mixture.found.plan, cell)) for alive, cell in zip(living, mixture.cells, strict=True)]
    return kept_of(mixture, [max(numbers)] * len(numbers) if mixture.even else numbers, list(chain(*living)))


def alike_within(mixtures: list[Ranked], excess: int, size: Callable[[Found], int]) -> list[list[int]]:
    """What stays of each when `excess` bytes have to go and all are to keep as many. Raises Usage when so much cannot go."""
    for number in range(mixtures[0].found.plan.experts, 0, -1):
        kept = [leaving(mixture, number) for mixture in mixtures if can_leave(mixture, number)]
        gone = [size(m.found) * (m.found.plan.experts - len(stay)) for m, stay in zip(mixtures, kept, strict=False)]
        if len(kept) == len(mixtures) and sum(gone) >= excess:
            return kept
    raise Usage(BEYOND)


def can_leave(mixture: Ranked, number: int) -> bool:
    """Whether `leaving` so many would be possible."""
    try:
        leaving(mixture, number)
    except Usage:
        return False
    return True


def within(mixtures: list[Ranked], excess: int, size: Callable[[Found], int]) -> list[list[int]]:
    """What stays of each when `excess` bytes have to go, wherever they cost least; `size` is that of one expert.

    Raises Usage when so much cannot go.
    """
    steps = [_steps(mixture) for mixture in mixtures]
    heap = [(layer[0][1], i, 0) for i, layer in enumerate(steps) if layer]
    heapq.heapify(heap)
    gone: list[set[int]] = [set() for _ in mixtures]
    while excess > 0:
        if not heap:
            raise Usage(BEYOND)
        _, i, at = heapq.heappop(heap)
        gone[i] |= set(steps[i][at][0])
        excess -= len(steps[i][at][0]) * size(mixtures[i].found)
        if at + 1 < len(steps[i]):
            heapq.heappush(heap, (steps[i][at + 1][1], i, at + 1))
    return [[e for e in range(m.found.plan.experts) if e not in out] for m, out in zip(mixtures, gone, strict=True)]


def _steps(mixture: Ranked) -> list[tuple[tuple[int, ...], float]]:
    """What can go after one another: (the experts that go at once, what that costs); of even cells one of each at once."""
    rank = {e: i for i, e in enumerate(mixture.order)}
    ordered = [sorted(cell, key=lambda e: rank[e]) for cell in mixture.cells]
    free = [cell[: len(cell) - least(mixture.found.plan, cell)] for cell in ordered]
    alone = [(e,) for e in sorted(chain(*free), key=lambda e: rank[e])]
    together = list(zip(*free, strict=True)) if mixture.even else alone
    return [(step, sum(mixture.cost[e] for e in step)) for step in together]
