"""Mixtures that a model has, as plans with their weights: found in a traced graph of any class, or told by a plan of ours.

Dimension letters: T tokens, H hidden, F expert width, E experts.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, is_call, op_name, scope
from mocomp.plans.blocks import unshaped
from mocomp.plans.plan import MixturePlan, ModelPlan
from mocomp.weights import recipes
from mocomp.weights.recipes import Recipe

LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class Found:
    """A mixture that stands in a model: its plan, the recipe of each weight by the names of `plan.shapes()`.

    `parameters` are the names of the weights in the model whose place those take.
    """

    plan: MixturePlan
    weights: dict[str, Recipe]
    parameters: tuple[str, ...]

    @property
    def enter(self) -> str:
        return self.plan.enter


class Refused(Exception):
    """Why a mixture cannot be said as a plan."""


def of_plan(plan: ModelPlan, bound: dict[str, Recipe]) -> list[Found]:
    """The mixtures of a checkpoint of ours, with the recipes of its model."""
    found = []
    for mixture in plan.mixtures:
        names = {name: f"{mixture.enter}.{name}" for name in mixture.shapes()}
        found.append(Found(mixture, {own: bound[name] for own, name in names.items()}, tuple(names.values())))
    return found


def find_mixtures(program: Program, parameters: Iterable[str], group: str) -> tuple[list[Found], list[str]]:
    """(every mixture of a class of transformers as one `group` of experts, why others can be none).

    Its routing has to be fused already. The router's product must read what the experts read: then a mixture of ours in
    the place of the experts, which is handed x alone, can route by it. `parameters` are the names of the model's weights.
    """
    names, places = list(parameters), calls(program, MOCOMP.experts.default)
    found, skipped = [], []
    for node in places:
        enter = scope(node)
        try:
            if sum(scope(other) == enter for other in places) > 1:
                raise Refused("the same experts are used more than once")
            mine = tuple(name for name in names if name.startswith(f"{enter}."))
            found.append(_found(program, node, enter, mine, group))
        except Refused as reason:
            skipped.append(f"{enter}: {reason}")
    return found, skipped


def _found(program: Program, node: Any, enter: str, parameters: tuple[str, ...], group: str) -> Found:
    x, ids, shares, *bank, expert = node.args
    route: Any = ids.args[0] if is_call(ids, operator.getitem) else None
    if not is_call(route, MOCOMP.route.default) or not is_call(shares, operator.getitem) or shares.args[0] is not route:
        raise Refused("no known router does its routing")
    logits, tensors, router = route.args
    if not is_call(logits, LINEAR):
        raise Refused(f"its router's logits come from {op_name(logits)}, and not from one product with a weight")
    if unshaped(logits.args[0]) is not unshaped(x):
        raise Refused(f"its router reads {logits.args[0]}, and its experts {x}")
    if len(tensors) > 1:
        raise Refused(f"its router has {len(tensors)} tensors besides its product, and a plan holds one")
    bias = logits.args[2] if len(logits.args) > 2 else None
    nodes = {
        "router.weight": logits.args[1],
        "router.bias": bias,
        "router.correction": tensors[0] if tensors else None,
        **dict(zip(("experts.w_in", "experts.b_in", "experts.w_out", "experts.b_out"), bank, strict=True)),
    }
    weights = {name: _recipe(program, name, weight) for name, weight in nodes.items() if weight is not None}
    experts, hidden, width = weights["experts.w_out"].shape
    if "router.correction" in weights and weights["router.correction"].shape == (1, experts):  # as ERNIE 4.5 has it
        weights["router.correction"] = recipes.reshape(weights["router.correction"], (experts,))
    plan = MixturePlan(
        enter,
        "experts",
        hidden,
        width,
        ((group, experts),),
        ((group,),),
        router,
        expert,
        in_bias="experts.b_in" in weights,
        out_bias="experts.b_out" in weights,
        router_bias="router.bias" in weights,
        correction="router.correction" in weights,
    )
    for name, shape in plan.shapes().items():
        if weights[name].shape != shape:
            raise Refused(f"its {name} is {list(weights[name].shape)}, expected {list(shape)}")
    return Found(plan, weights, parameters)


def _recipe(program: Program, name: str, node: fx.Node) -> Recipe:
    recipe = program.recipe_of(node)
    if recipe is None:
        raise Refused(f"its {name} is computed by {op_name(node)}, and is no weight")
    return recipe
