"""Mixed precision: a budget of bytes spent over layers and projections, by what each format costs there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mocomp import terminal
from mocomp.calibration.quantiser import Candidate, Quantiser
from mocomp.calibration.sensitivity import Sensitivity
from mocomp.calibration.walk import Walk
from mocomp.ir.program import Program
from mocomp.passes.quantize_weights import quantisable
from mocomp.quant.algorithms import Algorithm
from mocomp.quant.budget import Choice, solve
from mocomp.quant.formats import Format
from mocomp.quant.weight import promised
from mocomp.weights.recipes import Reader

Formats = dict[str, Format]


@dataclass(frozen=True)
class Mixing:
    """What a budget is spent on: `groups` are the weights that the target wants in one format, for all of their experts.

    `rows` are run to measure, and those that are not `learned` from to judge.
    """

    program: Program
    read: Reader
    groups: list[list[str]]
    formats: Sequence[Format]
    algorithm: Algorithm
    rows: list[dict]
    learned: list[bool]

    @property
    def names(self) -> list[str]:
        """All the weights."""
        return [name for group in self.groups for name in group]

    def chosen(self, budget: int, notes: list[str]) -> Formats:
        """The format of each weight: together at most `budget` bytes, at the least error of the model's output.

        What a format costs is measured weight by weight, which leaves out what later layers make of an error. So several
        plans are drawn up, by errors as they are and relative to what a layer gives, and beside one format for all; the
        model is run with each, and the best is taken. Raises Usage for a budget that cannot be met.
        """
        sensitivity = Sensitivity(self.program, self.read, list(self.formats), self.algorithm)
        terminal.say(f"sensitivity: {len(self.formats)} formats of {len(self.names)} weights")
        Walk(self.program, self.read, quantisable(self.program, self.names)).run(self.rows, sensitivity)
        plans = {
            "errors as they are": self._solved(sensitivity, budget, relative=False, notes=notes),
            "errors relative to each layer's output": self._solved(sensitivity, budget, relative=True),
        }
        for form in self.formats:
            if sum(form.nbytes(self.program.recipes[name].shape) for name in self.names) <= budget:
                plans[f"{form.text} for all"] = dict.fromkeys(self.names, form)
        losses = self._judged(plans)
        best = min(losses, key=lambda label: losses[label])
        told = ", ".join(f"{label} {loss:.2g}" for label, loss in losses.items())
        notes.append(f"mixed precision: {_counted(plans[best])}, by {best}; the plans cost {told}")
        return plans[best]

    def _solved(self, sensitivity: Sensitivity, budget: int, relative: bool, notes: list[str] | None = None) -> Formats:
        """The best plan by measured costs; notes say what a format for each expert would have saved."""
        units: dict[str, list[Choice]] = {}
        experts: dict[str, list[str]] = {}
        for name in self.names:
            count, *size = self.program.recipes[name].shape
            experts[name] = [f"{name}[{e}]" for e in range(count)]
            of = sensitivity.energy[name] if relative else 1.0
            for e, unit in enumerate(experts[name]):
                costs = {form.text: sensitivity.costs[name][form.text][e] / of for form in self.formats}
                units[unit] = [Choice(form.text, form.nbytes((1, *size)), costs[form.text]) for form in self.formats]
        tied = solve(units, budget, [[unit for name in group for unit in experts[name]] for group in self.groups])
        if notes is not None:
            notes += self._lost_to_ties(units, tied, solve(units, budget))
        by_text = {form.text: form for form in self.formats}
        return {name: by_text[tied[experts[name][0]]] for name in self.names}

    def _lost_to_ties(self, units: dict[str, list[Choice]], tied: dict[str, str], free: dict[str, str]) -> list[str]:
        cost = [sum(c.cost for unit in units for c in units[unit] if c.format == plan[unit]) for plan in (tied, free)]
        if not cost[0] or len(units) == len(self.groups):
            return []
        where = "layer" if len(self.groups[0]) > 1 else "projection"
        saved = 1 - math.sqrt(cost[1] / cost[0])
        return [
            f"the target wants one format for all experts of a {where}; one for each weight of each expert would have "
            f"{saved:.0%} less error in as many bytes"
        ]

    def _judged(self, plans: dict[str, Formats]) -> dict[str, float]:
        """What the model's output loses under each plan, all run together."""
        candidates = []
        for label, formats in plans.items():
            weights = {name: promised(name, self.program.recipes[name].shape, form) for name, form in formats.items()}
            candidates.append(Candidate(label, weights, self.algorithm, None))
        quantiser = Quantiser(self.program, self.read, candidates, self.rows, self.learned)
        visited = quantisable(self.program, self.names)
        Walk(self.program, self.read, visited, 1 + len(candidates)).run(self.rows, quantiser, "plans")
        return {candidate.label: candidate.quality().loss for candidate in candidates}


def _counted(plan: Formats) -> str:
    texts = [form.text for form in plan.values()]
    return ", ".join(f"{texts.count(text)} weights in {text}" for text in dict.fromkeys(texts))
