"""Upcycling: every expert starts as a copy of the dense block, or of a slice of it.

Komatsuzaki et al. 2023 (copies), He et al. 2024 (slices: granularity and virtual groups), Nakamura et al. 2025
(drop-upcycling: a share of each expert's neurons is drawn anew), Lin et al. 2024 (one set of copies per modality).
Dimension letters: H hidden, F width of the block, E experts of a group, S slices that are routed.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from mocomp.errors import Usage
from mocomp.fill import Filled
from mocomp.fill.routing import Rows, drawn_rows, router, tried, zero_rows
from mocomp.fill.slices import bank, neurons, rounded, shared
from mocomp.ir.specs import spell
from mocomp.plans.blocks import Block, Dense
from mocomp.plans.plan import MixturePlan
from mocomp.routers import Router
from mocomp.weights import recipes
from mocomp.weights.arithmetic import noise, redrawn
from mocomp.weights.recipes import Recipe


@dataclass(frozen=True)
class Upcycle:
    """Fill a mixture of `groups` with copies of the block.

    With `granularity` g the block is cut into g slices of F/g neurons; `shared` of them every token goes through, and an
    expert is one of the other S. The experts of one copy have the same router row, so that a top-k of a multiple of S
    takes whole copies, and the routing is scaled by S: then the function is the block's whatever the router's rows.
    """

    groups: tuple[tuple[str, int], ...]
    reach: tuple[tuple[str, ...], ...]
    k: int
    router: str
    rows: Rows
    granularity: int = 1
    shared: int = 0
    noise: float = 0.0
    redraw: float = 0.0
    auxiliary: int = 0
    seed: int = 0

    def __call__(self, block: Block) -> Filled:
        width = self._width(block)
        routed = self.granularity - self.shared
        routing = self._routing(routed)
        biased, total = tried(routing, self._experts)
        slices = [range(i * width, (i + 1) * width) for i in range(self.shared, self.granularity)]
        bias = 0.0 if self.shared else 1 / routed
        experts = [
            self._disturbed(block, neurons(block, slices[e % routed], bias), f"{group}.{e}")
            for group, count in self.groups
            for e in range(count)
        ]
        rows = [self.rows(block, group, count // routed).repeat_interleave(routed, 0) for group, count in self.groups]
        weights = bank(experts) | {"router.weight": recipes.literal(torch.cat(rows))}
        if self.shared:
            weights |= shared(neurons(block, range(self.shared * width), 1.0))
        if biased:
            weights["router.correction"] = recipes.literal(torch.zeros(self._experts))
        auxiliary = 0 if routing.causal else self.auxiliary
        plan = MixturePlan(
            block.enter,
            "dense",
            block.dense.hidden,
            width,
            self.groups,
            self.reach,
            spell(routing),
            spell(block.expert),
            leave=block.leave,
            shared=self.shared * width,
            in_bias=block.dense.b_in is not None,
            out_bias=block.dense.b_out is not None,
            correction=biased,
            auxiliary=auxiliary,
            inference=spell(router("auxiliary", self.k, self._experts, self._masked)) if auxiliary else "",
        )
        return Filled(plan, weights | self._auxiliary_rows(plan), self._changes(block, routed, routing, total))

    @property
    def _experts(self) -> int:
        return sum(count for _, count in self.groups)

    @property
    def _masked(self) -> bool:
        return len(self.groups) > 1

    def _width(self, block: Block) -> int:
        if self.granularity < 1 or block.dense.width % self.granularity:
            raise Usage(f"--granularity {self.granularity} does not divide the width {block.dense.width} of {block.enter}")
        if not 0 <= self.shared < self.granularity:
            raise Usage(f"--shared {self.shared} takes that many of the {self.granularity} slices of --granularity; leave one")
        return block.dense.width // self.granularity

    def _routing(self, routed: int) -> Router:
        for group, count in self.groups:
            if count % routed:
                raise Usage(f"group {group} has {count} experts, which is not whole copies of {routed} slices")
            if not 1 <= self.k <= count:
                raise Usage(f"--top-k {self.k}, and group {group} has {count} experts")
        if self.router.partition(":")[0] == "auxiliary":
            raise Usage("router auxiliary foretells another one", fix="Say --router expert_choice --auxiliary WIDTH.")
        return router(self.router, self.k, self._experts, self._masked, routed)

    def _disturbed(self, block: Block, expert: Dense, name: str) -> Dense:
        """The expert with noise, and with some of its neurons drawn anew; the same on every run."""
        if not self.noise and not self.redraw:
            return expert
        chance = random.Random(f"{self.seed}.{block.enter}.{name}")
        seed, width = chance.getrandbits(40), expert.width
        chosen = sorted(chance.sample(range(width), round(self.redraw * width)))
        rows = [*chosen, *(i + width for i in chosen)] if block.expert.gated else chosen
        w_in = noise(redrawn(expert.w_in, 0, rows, seed), self.noise, seed + 1)
        w_out = noise(redrawn(expert.w_out, 1, chosen, seed + 2), self.noise, seed + 3)
        return Dense(w_in, expert.b_in, w_out, expert.b_out)

    def _auxiliary_rows(self, plan: MixturePlan) -> dict[str, Recipe]:
        drawn = {n: s for n, s in plan.shapes().items() if n.startswith("router.aux")}
        return {n: recipes.literal(drawn_rows(self.seed, f"{plan.enter}.{n}", *s)) for n, s in drawn.items()}

    def _changes(self, block: Block, routed: int, routing: Router, total: float | None) -> str:
        """Why the function is not the block's, empty when it is."""
        if self.noise or self.redraw:
            return "experts were disturbed by noise, or drawn anew in part"
        if not routing.fixed:
            return f"{self.router} gives a token any number of experts"
        if self.k % routed:
            return f"a top-{self.k} does not take whole copies of {routed} slices"
        if routed > 1 and self.rows is zero_rows:
            return "with equal router rows a top-k may take slices of different copies"
        if total is None or abs(total - routed) > 1e-4:
            return f"the weights of {self.router} do not sum to 1"
        return "" if self.shared else rounded(block, routed)
