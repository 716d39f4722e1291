"""What every subject is fed at a point: one file of arrays for all of them, made with the artifact itself.

Dimension letters: T tokens, E experts, K chosen per token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mocomp.bench.points import Point
from mocomp.models.interface import Interface, is_per_token
from mocomp.targets import Arrays, Mixture, Runner
from mocomp.verify.inputs import Case
from mocomp.verify.parity import run_case


@dataclass(frozen=True)
class Prepared:
    """A point with the file of its inputs, and how many experts of each mixture its tokens come to, by layer."""

    point: Point
    file: Path
    distinct: dict[str, int]


def prepare(
    runner: Runner, mixtures: list[Mixture], interface: Interface, point: Point, given: Arrays, directory: Path
) -> Prepared:
    """Run a point once, its past first, and keep what the timed call is given: new tokens, and the cache of the past.

    `runner` is of the artifact, with the scores of its routers exposed.
    """
    case = Case(point.name, point.batch, point.sequence, point.past)
    before, after = run_case(runner.run, interface, case, given)
    fed = {name: array[:, point.past :] if is_per_token(name) else array for name, array in given.items()}
    for i, (heads, *widths) in enumerate(interface.past):
        for part, width in zip(("key", "value"), widths, strict=True):
            nothing = np.zeros((point.batch, heads, 0, width), np.float32)
            fed[f"past_key_values.{i}.{part}"] = before.get(f"present.{i}.{part}", nothing)
    file = directory / f"{len(list(directory.iterdir()))}.npz"
    np.savez(file, allow_pickle=False, **fed)  # type: ignore[arg-type]
    return Prepared(point, file, {m.layer: len(np.unique(m.chosen(after))) for m in mixtures if m.choice in after})
