"""Mixed precision: a budget of bytes spent over layers and projections, by what each format costs there."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mocomp import terminal
from mocomp.calibration.sensitivity import Sensitivity
from mocomp.calibration.walk import Walk
from mocomp.ir.program import Program
from mocomp.passes.quantize_weights import quantisable
from mocomp.quant.algorithms import Algorithm
from mocomp.quant.budget import Choice, solve
from mocomp.quant.formats import Format
from mocomp.weights.recipes import Reader


def chosen(
    program: Program,
    read: Reader,
    groups: list[list[str]],
    formats: Sequence[Format],
    algorithm: Algorithm,
    budget: int,
    rows: list[dict],
    notes: list[str],
) -> dict[str, Format]:
    """The format of each weight: together at most `budget` bytes, at the least measured cost.

    `groups` are the weights that the target wants in one format, for all of their experts. What a format for each expert
    would have saved is worked out too, and noted. Raises Usage for a budget that cannot be met.
    """
    names = [name for group in groups for name in group]
    sensitivity = Sensitivity(program, read, list(formats), algorithm)
    terminal.say(f"sensitivity: {len(formats)} formats of {len(names)} weights")
    Walk(program, read, quantisable(program, names)).run(rows, sensitivity)
    units: dict[str, list[Choice]] = {}
    experts: dict[str, list[str]] = {}
    for name in names:
        count, *size = program.recipes[name].shape
        experts[name] = [f"{name}[{e}]" for e in range(count)]
        for e, unit in enumerate(experts[name]):
            units[unit] = [Choice(f.text, f.nbytes((1, *size)), sensitivity.costs[name][f.text][e]) for f in formats]
    ties = [[unit for name in group for unit in experts[name]] for group in groups]
    by_text = {form.text: form for form in formats}
    tied, free = solve(units, budget, ties), solve(units, budget)
    cost = [sum(c.cost for unit in units for c in units[unit] if c.format == plan[unit]) for plan in (tied, free)]
    picked = {name: by_text[tied[experts[name][0]]] for name in names}
    counts = {text: list(picked.values()).count(form) for text, form in by_text.items()}
    notes.append("mixed precision: " + ", ".join(f"{count} weights in {text}" for text, count in counts.items() if count))
    if cost[0] > 0 and len(units) > len(groups):
        saved = 1 - math.sqrt(cost[1] / cost[0])
        notes.append(
            f"the target wants one format for all experts of a {'layer' if len(groups[0]) > 1 else 'projection'}; one for each "
            f"weight of each expert would have {saved:.0%} less error in as many bytes"
        )
    return picked
