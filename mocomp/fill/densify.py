"""The way back: the experts of a mixture averaged into the one dense block in whose place it stands.

Experts are slices of a block, one or several, and copies of each; the order of a bank is slice by slice, copy after copy
(`fill/upcycle.py`), or every slice once (`fill/carve.py`). Which it is follows from the widths alone.
Dimension letters: H hidden, F width of the block, E experts, S slices of the block that experts hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from mocomp.errors import Unsupported
from mocomp.fill.routing import tried
from mocomp.plans.blocks import Dense
from mocomp.plans.plan import MixturePlan
from mocomp.weights import recipes
from mocomp.weights.arithmetic import elementwise, mean, scaled
from mocomp.weights.recipes import Reader, Recipe

PARTS = ("w_in", "b_in", "w_out", "b_out")


@dataclass(frozen=True)
class Densified:
    """A block of the width that the base has; `changes` says why it does not compute what the mixture did, if so."""

    dense: Dense
    changes: str


@dataclass(frozen=True)
class Densify:
    """Make blocks of mixtures whose weights, by the names of their plans, are read by `read`."""

    read: Reader

    def __call__(self, plan: MixturePlan, width: int, weights: dict[str, Recipe], shares: torch.Tensor | None) -> Densified:
        """The block of `width` F; experts count alike, or by their `shares` [E] of all use."""
        slices = self._slices(plan, width)
        total = tried(plan.routing, plan.experts)[1] if plan.routing.fixed and not plan.auxiliary else None
        merged = [self._merged(weights, list(range(s, plan.experts, slices)), shares) for s in range(slices)]
        routed = _joined([block for block, _ in merged], plan.kind.gated)
        # a token goes through one copy of each slice, or through k of the slices where there is one copy
        weight = 1.0 if total is None else total / (plan.routing.k if slices == plan.experts else slices)
        bias = None if routed.b_out is None else scaled(routed.b_out, (slices if total is None else total) / slices)
        blocks = [Dense(routed.w_in, routed.b_in, scaled(routed.w_out, weight), bias)]
        if plan.shared:
            blocks.insert(0, Dense(*(weights.get(f"shared.{part}") for part in PARTS)))  # type: ignore[arg-type]
        changes = [] if all(alike for _, alike in merged) else ["experts that differed were averaged"]
        if total is None or not self._whole_copies(plan, weights, slices):
            changes.append("the router chose what a token went through")
        if self._rounds(weights, weight, bias):
            changes.append("weights are rounded to the type that they have on disk")
        return Densified(_joined(blocks, plan.kind.gated), "; ".join(changes))

    def _slices(self, plan: MixturePlan, width: int) -> int:
        """S. Raises Unsupported when the experts do not add up to the block."""
        slices, rest = divmod(width - plan.shared, plan.width)
        if rest or slices < 1 or any(count % slices for _, count in plan.groups):
            raise Unsupported(
                f"experts of width {plan.width} beside a shared one of {plan.shared} do not make a block of {width}",
                where=plan.enter,
            )
        return slices

    def _merged(self, weights: dict[str, Recipe], same: list[int], shares: torch.Tensor | None) -> tuple[Dense, bool]:
        """(the average of the experts `same`, whether they are all one)."""
        banks = [weights.get(f"experts.{part}") for part in PARTS]
        experts = [None if bank is None else [expert(bank, e) for e in same] for bank in banks]
        alike = all(self._equal(copies) for copies in experts if copies is not None)
        by_use = None if shares is None or not shares[same].any() else (shares[same] / shares[same].sum()).tolist()
        made = [None if copies is None else copies[0] if alike else mean(copies, by_use) for copies in experts]
        return Dense(*made), alike  # type: ignore[arg-type]

    def _rounds(self, weights: dict[str, Recipe], weight: float, bias: Recipe | None) -> bool:
        """Whether products with `weight`, or the sum that is `bias`, are none of the type of the experts on disk."""
        dtype = next(weights["experts.w_in"].leaves()).dtype
        if dtype.itemsize >= 4:
            return False
        value = torch.zeros(1) if bias is None else bias.evaluate(self.read)
        return math.frexp(weight)[0] != 0.5 or not torch.equal(value.to(dtype).to(value.dtype), value)

    def _equal(self, alike: list[Recipe]) -> bool:
        first = alike[0].evaluate(self.read)
        return all(torch.equal(first, other.evaluate(self.read)) for other in alike[1:])

    def _whole_copies(self, plan: MixturePlan, weights: dict[str, Recipe], slices: int) -> bool:
        """Whether a token goes through every slice as often: experts of a copy share a router row, which no other copy has."""
        if slices == 1 or plan.routing.k == plan.experts:
            return True
        names = [name for name in ("router.weight", "router.bias", "router.correction") if name in weights]
        rows = torch.cat([weights[name].evaluate(self.read).reshape(plan.experts, -1) for name in names], 1)
        copies = rows.unflatten(0, (-1, slices))
        together = bool((copies == copies[:, :1]).all())
        apart = len(copies[:, 0].unique(dim=0)) == len(copies)
        return plan.routing.k % slices == 0 and plan.scoring == "linear" and together and apart


def expert(bank: Recipe, e: int) -> Recipe:
    """Expert e of a bank [E, ...]."""
    return recipes.reshape(recipes.slice_of(bank, 0, e, e + 1), bank.shape[1:])


def _joined(blocks: list[Dense], gated: bool) -> Dense:
    """Blocks beside each other as one: neurons after neurons, biases of the result added up."""
    halves = range(2 if gated else 1)

    def rows(parts: list[Recipe]) -> Recipe:
        cut = [
            recipes.slice_of(part, 0, i * block.width, (i + 1) * block.width)
            for i in halves
            for part, block in zip(parts, blocks, strict=True)
        ]
        return recipes.concat(cut, 0)

    biases = [block.b_in for block in blocks if block.b_in is not None]
    ends = [block.b_out for block in blocks if block.b_out is not None]
    return Dense(
        rows([block.w_in for block in blocks]),
        rows(biases) if biases else None,
        recipes.concat([block.w_out for block in blocks], 1),
        elementwise(lambda *xs: sum(xs), *ends) if ends else None,  # type: ignore[arg-type, return-value]
    )
