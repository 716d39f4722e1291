"""A placement: the whole chain of layers by one integer programme where it is small, else layer by layer.

Dimension letters: L layers with a mixture, E experts of one, N ranks.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mocomp.placement import programme
from mocomp.placement.programme import Room
from mocomp.placement.spectral import together
from mocomp.placement.traffic import Places, Traffic, blocks, crossing, loads, round_robin

SLACK = 0.25
"""How much more than the mean of its layer a rank may have to do."""
SMALL = 3000
"""Numbers of the programme of the whole chain up to which it is solved as one."""
SWEEPS = 20
"""How often all layers are gone through, forwards and backwards, at most."""


@dataclass
class Placed:
    """The rank of each expert [E], layer by layer; how that was found; whether nothing better exists."""

    places: Places
    method: str
    optimal: bool = False
    notes: list[str] = field(default_factory=list)


def place(traffic: Traffic, ranks: int, slack: float = SLACK) -> Placed:
    """The placement with the least crossing, in which no rank has more of a layer's choices than `slack` over the mean, or
    than it would have round-robin: so round-robin is always allowed, and what is found is never worse."""
    plain = round_robin(traffic.experts, ranks)
    if not traffic.total:
        why = "nothing is known of which experts follow each other: they were placed round-robin; give --usage or --calibration"
        return Placed(plain, "round-robin", notes=[why])
    rooms = [room_of(load, spread, ranks, slack) for load, spread in zip(traffic.load, plain, strict=True)]
    others = [blocks(traffic.experts, ranks), together(traffic, rooms, ranks)]
    starts = [plain, *(start for start in others if start is not None and _fits(traffic, start, rooms))]
    swept = [sweep(traffic, start, rooms, ranks) for start in starts]
    best = min(swept, key=lambda places: crossing(traffic, places))
    size = sum(int(np.count_nonzero(steps)) for steps in traffic.steps) * ranks + sum(traffic.experts) * ranks
    found, optimal = None, False
    if size <= SMALL:
        found, optimal = programme.chain(traffic.load, traffic.steps, rooms, ranks)
    if found is not None and crossing(traffic, found) <= crossing(traffic, best):
        best = found
    notes = [] if optimal else ["the placement was searched layer by layer: better than round-robin, and maybe not the best"]
    return Placed(best, "integer programme" if optimal else "layer by layer", optimal, notes)


def room_of(load: np.ndarray, spread: np.ndarray, ranks: int, slack: float) -> Room:
    """What one rank may hold of a layer with this `load` [E], of which `spread` [E] is the placement round-robin."""
    least, rest = divmod(len(load), ranks)
    allowed = max(int((1 + slack) * load.sum() / ranks), int(loads(load, spread, ranks).max()))
    return Room(least, least + bool(rest), allowed)


def sweep(traffic: Traffic, start: Places, rooms: list[Room], ranks: int) -> Places:
    """Each layer as its neighbours want it, forwards and backwards, until nothing gets better."""
    places, layers = list(start), range(len(start))
    for _ in range(SWEEPS):
        before = crossing(traffic, places)
        for i in (*layers, *reversed(layers)):
            better = programme.layer(_gain(traffic, places, i, ranks), traffic.load[i], rooms[i])
            trial = places if better is None else [*places[:i], better, *places[i + 1 :]]
            places = trial if crossing(traffic, trial) < crossing(traffic, places) else places
        if crossing(traffic, places) == before:
            break
    return places


def _gain(traffic: Traffic, places: Places, i: int, ranks: int) -> np.ndarray:
    """[E, N]: the steps of each expert of layer i that would stay, were it on each rank."""
    gain = np.zeros((len(places[i]), ranks))
    if i > 0:
        gain += traffic.steps[i - 1].T @ np.eye(ranks)[places[i - 1]]
    if i + 1 < len(places):
        gain += traffic.steps[i] @ np.eye(ranks)[places[i + 1]]
    return gain


def _fits(traffic: Traffic, places: Places, rooms: list[Room]) -> bool:
    for load, ranks_of, room in zip(traffic.load, places, rooms, strict=True):
        held = np.bincount(ranks_of)
        if held.max() > room.most or held.min() < room.least or np.bincount(ranks_of, weights=load).max() > room.load:
            return False
    return True
