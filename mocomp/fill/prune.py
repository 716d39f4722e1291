"""Pruning: a mixture with fewer experts, each of those that stay exactly as it was, and its row of the router with it.

Where the checkpoint is of a class of transformers it can stay one, when all layers keep as many: its own tensors, sliced,
and another number in its config. Dimension letters: H hidden, E experts, K chosen, N experts that stay.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mocomp.errors import Unsupported
from mocomp.fill import Filled
from mocomp.fill.extend import OF_ALL
from mocomp.ir.specs import spell
from mocomp.models.source import Source
from mocomp.plans.mixtures import Found
from mocomp.plans.plan import MixturePlan
from mocomp.routers import Router
from mocomp.weights import recipes
from mocomp.weights.arithmetic import pick
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Recipe, Tensor

OF_ONE_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)(\..*)")
"""A tensor of one expert, as classes name those that keep each for itself."""
NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""What configs of transformers call E."""


def pruned(found: Found, kept: Sequence[int]) -> Filled:
    """The mixture with the experts `kept` alone, in their order; the function is meant to move no token that they serve."""
    plan, weights = pruned_plan(found.plan, kept), dict(found.weights)
    for name, recipe in found.weights.items():
        if not name.startswith(OF_ALL):
            # two parts where a gate and an up neuron score an expert
            parts = range(0, recipe.shape[0], found.plan.experts)
            weights[name] = pick(recipe, 0, [first + e for first in parts for e in kept])
    return Filled(plan, weights)


def pruned_plan(plan: MixturePlan, kept: Sequence[int]) -> MixturePlan:
    """The plan of what stays. A group without experts is no group any more, and no modality reaches it."""
    cells = groups_of(plan)
    counts = {name: len(set(cell) & set(kept)) for (name, _), cell in zip(plan.groups, cells, strict=True)}
    groups = tuple((name, count) for name, count in counts.items() if count)
    reach = tuple(tuple(name for name in row if counts[name]) for row in plan.reach)
    made = replace(plan, groups=groups, reach=reach, router=_router(plan.routing, len(kept)))
    return replace(made, inference=_router(plan.routing_of_inference, len(kept))) if plan.inference else made


def _router(router: Router, experts: int) -> str:
    return spell(router if router.fixed else replace(router, k=experts))


def groups_of(plan: MixturePlan) -> list[list[int]]:
    """The experts of each group of modalities."""
    cells, first = [], 0
    for _, count in plan.groups:
        cells.append(list(range(first, first + count)))
        first += count
    return cells


def routed_groups(plan: MixturePlan) -> int:
    """Groups of one size that the router chooses among before it chooses experts; 1 for a router that has none."""
    return getattr(plan.routing, "groups", 1)


def cells_of(plan: MixturePlan) -> list[list[int]]:
    """The experts in sets of each of which some have to stay: groups of modalities, or those of the router."""
    count = routed_groups(plan)
    if count == 1:
        return groups_of(plan)
    size = plan.experts // count
    return [list(range(first, first + size)) for first in range(0, plan.experts, size)]


def least(plan: MixturePlan, cell: list[int]) -> int:
    """How many experts of a cell stay at least: every token needs K that it may have."""
    router = plan.routing_of_inference
    k = router.k if router.fixed else 1
    if routed_groups(plan) > 1:
        return max(2, -(-k // router.groups_kept))  # type: ignore[attr-defined]
    return min(k, len(cell))


def bytes_of_an_expert(found: Found) -> int:
    """What one expert takes in the checkpoint, with its row of the router."""
    return sum(leaf.nbytes for leaf in _leaves(found).values()) // found.plan.experts


def router_bytes(found: Found) -> int:
    """What the rows of the router take in the checkpoint."""
    return sum(leaf.nbytes for name, recipe in found.weights.items() if name.startswith("router.") for leaf in recipe.leaves())


def _leaves(found: Found) -> dict[str, Tensor]:
    owned = [recipe for name, recipe in found.weights.items() if not name.startswith(OF_ALL)]
    return {leaf.name: leaf for recipe in owned for leaf in recipe.leaves()}


def sliced_checkpoint(checkpoint: Checkpoint, mixtures: Sequence[Found], kept: Sequence[Sequence[int]]) -> dict[str, Recipe]:
    """The tensors of a checkpoint with the experts `kept` of each of its mixtures alone, all others as they are.

    Raises Unsupported when a tensor is divided by experts in no way known here.
    """
    made: dict[str, Recipe | None] = {name: checkpoint.recipe(name) for name in checkpoint.entries}
    for found, stay in zip(mixtures, kept, strict=True):
        made |= _sliced_mixture(found, stay)
    return {name: recipe for name, recipe in made.items() if recipe is not None}


def _sliced_mixture(found: Found, kept: Sequence[int]) -> dict[str, Recipe | None]:
    """The tensors that hold one mixture, by their names in the checkpoint; None for a name that is no more."""
    made: dict[str, Recipe | None] = {}
    apart: dict[tuple[str, str], dict[int, Tensor]] = defaultdict(dict)
    for name, leaf in _leaves(found).items():
        one = OF_ONE_EXPERT.fullmatch(name)
        if one is None:
            made[name] = _sliced(leaf, found, kept)
        else:
            apart[one[1], one[3]][int(one[2])] = leaf
    for (before, after), of in apart.items():
        if sorted(of) != list(range(found.plan.experts)):
            raise Unsupported(f"{before}*{after} is there for {len(of)} of {found.plan.experts} experts", where=found.enter)
        made |= dict.fromkeys((leaf.name for leaf in of.values()), None)
        made |= {f"{before}{i}{after}": of[e] for i, e in enumerate(kept)}
    return made


def _sliced(leaf: Tensor, found: Found, kept: Sequence[int]) -> Recipe:
    experts = found.plan.experts
    if leaf.shape[:1] == (experts,):
        return pick(leaf, 0, list(kept))
    if leaf.shape == (1, experts):  # as ERNIE 4.5 keeps its bias
        flat = pick(recipes.reshape(leaf, (experts,)), 0, list(kept))
        return recipes.reshape(flat, (1, len(kept)))
    raise Unsupported(f"{leaf.name} is {list(leaf.shape)}, and not divided by its {experts} experts", where=found.enter)


def config_with(source: Source, before: int, after: int) -> str:
    """The source's config.json with `after` experts in each layer where it had `before`."""
    made = copy.deepcopy(source.config)
    text: Any = made.get_text_config()
    numbers = [name for name in NUMBERS if getattr(text, name, None) == before]
    if not numbers:
        raise Unsupported(f"its config does not say in a field known here that it has {before} experts")
    for name in numbers:
        if getattr(text, name) == before:  # several names may be one field
            setattr(text, name, after)
    made.architectures = [source.model_class.__name__]
    return made.to_json_string()
