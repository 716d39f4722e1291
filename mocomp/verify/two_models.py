"""Two models on the same cases, of each of which the outputs alone are kept: what a checkpoint command did to the function."""

from __future__ import annotations

import numpy as np

from mocomp import terminal
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.verify.inputs import Drawn, arrays, cases, longest_of
from mocomp.verify.measures import distribution, relative_error
from mocomp.verify.reference import Reference

Outputs = list[dict[str, np.ndarray]]


def moved(
    before: tuple[Source, Interface], after: tuple[Source, Interface], seed: int, drawn: Drawn | None, memory: int
) -> tuple[float, float | None]:
    """(largest relative error of any output of the model `after`, mean KL of its next-token distribution).

    One of them after the other, with about `memory` bytes of its weights in memory.
    """
    terminal.say("proof: running the original and the new model")
    longest = longest_of(before[0].config, drawn)
    made = [_outputs(Reference.load(*model, memory), longest, seed, drawn) for model in (before, after)]
    return difference(*made)


def difference(before: Outputs, after: Outputs) -> tuple[float, float | None]:
    """(largest relative error of any output, mean KL of the next-token distribution) between two models on the same cases."""
    worst, kls = 0.0, []
    for a, b in zip(before, after, strict=True):
        worst = max([worst, *(relative_error(b[name], a[name]) for name in a)])
        if "logits" in a and a["logits"].ndim == 3:
            kls.append(distribution(b["logits"], a["logits"])[1])
    return worst, float(np.mean(kls)) if kls else None


def _outputs(reference: Reference, longest: int | None, seed: int, drawn: Drawn | None) -> Outputs:
    """The outputs of each case that this kind of model calls for, by name."""
    wanted, made = cases(reference.interface, longest), []
    with terminal.progress("running it", len(wanted), "cases") as advance:
        for case in wanted:
            made.append(reference.observe(case, arrays(reference.interface, case, seed, drawn)).outputs)
            advance(1)
    return made
