"""The experts of one layer alone, on what the reference fed its own: that leaves routing out of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mocomp.targets import Mixture, MixtureRunner, Target
from mocomp.verify.measures import relative_error
from mocomp.verify.reference import Routed


def experts_error(target: Target, directory: Path, m: Mixture, fed: list[Routed], exact: bool = False) -> float:
    """The largest error of one layer's experts alone, fed the tokens and the choice of reference runs."""
    return errors_on(target.open_mixture(directory, m, exact), m, fed)


def errors_on(runner: MixtureRunner, m: Mixture, fed: list[Routed]) -> float:
    """The largest error of a layer's experts on reference runs, in each of the ways in which they may run."""
    worst = 0.0
    for ref in (piece for run in fed for piece in _on_both_sides(run, m.limits)):
        y = runner.run({"x": ref.x.astype(np.float32), "ids": ref.ids, "weights": ref.weights.astype(np.float32)})["y"]
        worst = max(worst, relative_error(y, ref.y))
    return worst


def _on_both_sides(run: Routed, limits: Sequence[int]) -> Iterator[Routed]:
    """A run as it is and, where experts run in another way beyond a limit, as many of its tokens, repeated if need be, and one
    more: so each way gives every token of every run."""
    yield run
    for count in (count for limit in limits for count in (limit, limit + 1)):
        for start in range(0, len(run.x), count):
            rows = np.arange(start, start + count) % len(run.x)
            yield Routed(run.x[rows], run.ids[rows], run.weights[rows], run.y[rows])
