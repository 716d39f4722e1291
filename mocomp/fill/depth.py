"""Mixture-of-depths around a decoder layer, with routers drawn at random (Raposo et al. 2024).

Dimension letters: H hidden, A width of the auxiliary router.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

import torch

from mocomp.errors import Unsupported
from mocomp.fill.routing import DEVIATION
from mocomp.plans.blocks import Block
from mocomp.plans.plan import DepthPlan
from mocomp.weights import recipes
from mocomp.weights.recipes import Recipe


@dataclass(frozen=True)
class FilledDepth:
    """A plan with the recipe of each of its weights, by the names of `plan.shapes()`."""

    plan: DepthPlan
    weights: dict[str, Recipe]
    changes: str = "tokens may go past a layer"


def fill_depth(block: Block, capacity: float, auxiliary: int, seed: int) -> FilledDepth:
    """Mixture-of-depths for the decoder layer that a block belongs to. Raises Unsupported for a block outside of layers."""
    layer = re.match(r"(.*\.\d+)\.", block.enter)
    if layer is None:
        raise Unsupported("mixture-of-depths needs a block in a numbered layer", where=block.enter)
    plan = DepthPlan(layer[1], block.dense.hidden, capacity, auxiliary)
    generator = torch.Generator().manual_seed(random.Random(f"{seed}.{plan.layer}").getrandbits(40))
    drawn = {n: DEVIATION * torch.randn(s, generator=generator) for n, s in plan.shapes().items()}
    return FilledDepth(plan, {name: recipes.literal(value) for name, value in drawn.items()})
