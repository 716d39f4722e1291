"""Ways to fill the experts of an inserted mixture, one file each: a dense block goes in, a plan and recipes come out.

Dimension letters: H hidden, F width of the dense block, E experts of all groups, S slices of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

from mocomp.plans.plan import MixturePlan
from mocomp.weights.recipes import Recipe


@dataclass(frozen=True)
class Filled:
    """A mixture with the recipe of each of its weights, by the names of `plan.shapes()`.

    `changes` says why the mixture does not compute what the block did; empty when it does, which is then proven.
    """

    plan: MixturePlan
    weights: dict[str, Recipe]
    changes: str = ""
