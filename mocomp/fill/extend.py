"""Extending: more experts for a mixture that stands, without a change for the tokens that it was made for.

MoExtend (Zhong et al. 2024) adds experts to a trained mixture for a new modality; here the new modality is a row of the
table of reach (MoMa, Lin et al. 2024), so that the router finds new experts at -inf for every old token, whatever its rows.
Taken from it: new experts start as copies of those that calibration data uses most. Left out: its choice of layers by
how much routing shifts, which --layers says here.
Dimension letters: H hidden, E experts, N new experts of a group.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from mocomp.errors import Unsupported, Usage
from mocomp.fill import Filled
from mocomp.ir.specs import spell
from mocomp.plans.blocks import Block
from mocomp.plans.mixtures import Found
from mocomp.plans.plan import MixturePlan
from mocomp.routers import Router
from mocomp.weights import recipes
from mocomp.weights.arithmetic import pick
from mocomp.weights.recipes import Recipe

Rows = Callable[[Found, str, int], torch.Tensor]
"""(mixture, group, N) -> router rows [N, H] for new experts of that group."""
Order = Callable[[Found], list[int]]
"""The experts [E] of a mixture, those that are to be copied first at the front."""
OF_ALL = ("shared.", "router.aux_in")
"""Weights that no expert has a part of."""


@dataclass(frozen=True)
class Extend:
    """A mixture with `more` experts, as (group, N): in groups that it has, or in new ones of the `fresh` modalities.

    Tokens of a fresh modality reach its group alone, or with `also_old` the old groups as well; where a mixture has no
    experts for it they go on as tokens of modality `rest` do, or everywhere. Without `rows` router rows are copied too.
    """

    more: tuple[tuple[str, int], ...]
    fresh: tuple[str, ...] = ()
    also_old: bool = False
    rest: int | None = None
    rows: Rows | None = None
    order: Order = field(default=lambda found: list(range(found.plan.experts)))

    def __call__(self, found: Found, blocks: Mapping[str, list[Block]]) -> Filled:
        """`blocks` holds, per group, the dense blocks that its new experts are copies of, in turns."""
        plan = found.plan
        groups = [(name, count + dict(self.more).get(name, 0)) for name, count in plan.groups]
        old = tuple(name for name, _ in plan.groups)
        groups += [(name, count) for name, count in self.more if name not in old]
        made = replace(plan, groups=tuple(groups), reach=(*plan.reach, *(self._reach(plan, name) for name in self.fresh)))
        made = replace(made, router=self._router(plan, plan.routing, made.experts))
        if plan.inference:
            made = replace(made, inference=self._router(plan, plan.routing_of_inference, made.experts))
        self._refuse_too_few(made)
        self._refuse_ties(found)
        weights = dict(found.weights)
        for name, recipe in found.weights.items():
            if self.more and not name.startswith(OF_ALL):
                # two parts where a gate and an up neuron score an expert
                parts = [recipes.slice_of(recipe, 0, i, i + plan.experts) for i in range(0, recipe.shape[0], plan.experts)]
                weights[name] = recipes.concat([self._grown(found, name, part, blocks) for part in parts], 0)
        grown = [name for name, _ in self.more if name in old]
        return Filled(made, weights, f"more experts take part in the choice for group {', '.join(grown)}" if grown else "")

    def _reach(self, plan: MixturePlan, name: str) -> tuple[str, ...]:
        """The groups that tokens of a fresh modality are routed among."""
        old = tuple(group for group, _ in plan.groups)
        if name not in dict(self.more):
            return old if self.rest is None else plan.reach[self.rest]
        return (name, *old) if self.also_old else (name,)

    def _router(self, plan: MixturePlan, router: Router, experts: int) -> str:
        if self.more and getattr(router, "groups", 1) > 1:
            raise Unsupported(
                f"its router {router.name} chooses among groups of experts of one size, which more experts would change",
                where=plan.enter,
            )
        fields = {f.name for f in dataclasses.fields(router)}
        masked = {"masked": True} if self.fresh and "masked" in fields else {}
        return spell(replace(router, **masked, **({} if router.fixed else {"k": experts})))

    def _refuse_too_few(self, plan: MixturePlan) -> None:
        """Every token needs K experts that it may have."""
        counts = dict(plan.groups)
        for name, row in zip(self.fresh, plan.reach[len(plan.reach) - len(self.fresh) :], strict=True):
            if plan.routing.fixed and sum(counts[group] for group in row) < plan.routing.k:
                raise Usage(
                    f"a token of {name} takes {plan.routing.k} experts of {plan.enter}, and would reach {counts[name]}",
                    fix=f"Say --groups {name}={plan.routing.k} or more, or --reach both.",
                )

    def _refuse_ties(self, found: Found) -> None:
        """Of two experts with one row no rule says which is chosen, so a copied row may not meet its original or its like."""
        by_neurons = found.plan.scoring == "neurons"
        if self.rows is not None and not by_neurons:
            return
        for group, copies in self._copies(found).items():
            alone = group in self.fresh and not self.also_old
            if not alone or len(set(copies)) < len(copies):
                raise Usage(
                    f"copied rows of the router tie with others for tokens of {group}, at {found.enter}",
                    fix="Its experts are scored by their neurons: add a new group of no more experts than there are."
                    if by_neurons
                    else "Say --router-init random or hidden.",
                )

    def _copies(self, found: Found) -> dict[str, list[int]]:
        """For each group with new experts, the old expert [N] that each is a copy of: those of its own group, if any."""
        owners = [name for name, count in found.plan.groups for _ in range(count)]
        order = self.order(found)
        own = {name: [e for e in order if owners[e] == name] or order for name, _ in self.more}
        return {name: [own[name][i % len(own[name])] for i in range(count)] for name, count in self.more}

    def _grown(self, found: Found, name: str, old: Recipe, blocks: Mapping[str, list[Block]]) -> Recipe:
        """old [E, ...] with the new rows of each group behind the group's own, those of new groups last."""
        new = {g: self._new(found, name, old, g, copies, blocks.get(g, [])) for g, copies in self._copies(found).items()}
        pieces, first = [], 0
        for group, count in found.plan.groups:
            pieces.append(recipes.slice_of(old, 0, first, first + count))
            pieces += [new.pop(group)] if group in new else []
            first += count
        return recipes.concat([*pieces, *new.values()], 0)

    def _new(self, found: Found, name: str, old: Recipe, group: str, copies: list[int], blocks: list[Block]) -> Recipe:
        """[N, ...]: what the new experts of a group have of weight `name`."""
        if name == "router.weight" and self.rows is not None and found.plan.scoring == "linear":
            return recipes.literal(self.rows(found, group, len(copies)))
        if name.startswith("experts.") and blocks:
            fitting = [_fitting(found.plan, block).dense for block in blocks]
            parts = [getattr(fitting[i % len(blocks)], name.removeprefix("experts.")) for i in range(len(copies))]
            return recipes.stack(parts, 0)
        return pick(old, 0, copies)


def _fitting(plan: MixturePlan, block: Block) -> Block:
    """The block. Raises Unsupported when it cannot be an expert of the mixture."""
    dense = block.dense
    differs = {
        "hidden size": (dense.hidden, plan.hidden),
        "width": (dense.width, plan.width),
        "kind": (spell(block.expert), plan.expert),
        "bias of its first product": (dense.b_in is not None, plan.in_bias),
        "bias of its second product": (dense.b_out is not None, plan.out_bias),
    }
    for what, (theirs, ours) in differs.items():
        if theirs != ours:
            raise Unsupported(f"the {what} of {block.enter} is {theirs}, and that of the experts is {ours}", where=plan.enter)
    return block
