"""What tokens do between the mixtures of a model, and what of it a placement has cross ranks.

Dimension letters: L layers with a mixture, E experts of one, N ranks, K chosen per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

Places = list[np.ndarray]
"""The rank of each expert [E], layer by layer."""


@dataclass(frozen=True)
class Traffic:
    """What was measured: of each layer, `load` [E], how many choices fell on each expert; `steps` [E, E'] between a layer and
    the next, how many times a token that had chosen e there chose e' here, counted for each pair of its choices (0 where it
    is not known who is who). `modalities` are the parts of `load` by name."""

    layers: list[str]
    load: list[np.ndarray]
    steps: list[np.ndarray]
    modalities: dict[str, list[np.ndarray]] = field(default_factory=dict)

    @classmethod
    def unknown(cls, layers: list[str], experts: list[int]) -> Traffic:
        """Of a model of which nothing was measured."""
        nothing = [np.zeros((a, b), np.int64) for a, b in pairwise(experts)]
        return cls(layers, [np.zeros(count, np.int64) for count in experts], nothing)

    @property
    def experts(self) -> list[int]:
        """E of each layer."""
        return [len(load) for load in self.load]

    @property
    def total(self) -> int:
        """All steps between layers, whether they cross or not."""
        return sum(int(steps.sum()) for steps in self.steps)


def crossing(traffic: Traffic, places: Places) -> int:
    """How many steps lead from an expert on one rank to an expert on another."""
    pairs = zip(traffic.steps, places, places[1:], strict=False)
    return sum(int(steps[before[:, None] != after[None, :]].sum()) for steps, before, after in pairs)


def loads(load: np.ndarray, ranks: np.ndarray, count: int) -> np.ndarray:
    """[N]: the part of a layer's `load` [E] that each of `count` ranks has."""
    return np.bincount(ranks, weights=load, minlength=count).astype(np.int64)


def imbalance(traffic: Traffic, places: Places, count: int) -> float:
    """The largest load of a rank over the mean of its layer, of the layer where that is largest; 1 is balanced."""
    worst = 1.0
    for load, ranks in zip(traffic.load, places, strict=True):
        if load.sum():
            worst = max(worst, float(loads(load, ranks, count).max() * count / load.sum()))
    return worst


def round_robin(experts: Sequence[int], count: int) -> Places:
    """Expert e on rank e mod N."""
    return [np.arange(size) % count for size in experts]


def blocks(experts: Sequence[int], count: int) -> Places:
    """Neighbours together: the experts in N pieces, one after the other."""
    return [np.arange(size) * count // size for size in experts]
