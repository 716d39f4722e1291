"""How long an artifact takes: the median of runs on inputs that its interface asks for."""

from __future__ import annotations

import statistics
import time

import numpy as np

from mocomp.models.interface import Interface
from mocomp.targets import Arrays, Runner
from mocomp.verify.inputs import Case, Drawn, arrays

WARM_UP, FEWEST, SECONDS = 2, 5, 1.0
"""Runs that do not count; runs that count at least; how long runs are added to them."""


def workloads(interface: Interface, longest: int | None, drawn: Drawn | None = None) -> dict[str, Arrays]:
    """Inputs by what they are called: one token and a prompt, or one image; a batch of one, nothing past."""
    if interface.kind == "vision":
        return {"one image": arrays(interface, Case("one image", 1, 1), 0, drawn)}
    lengths = {"1 token": 1, f"{min(128, longest or 128)} tokens": min(128, longest or 128)}
    past = {
        f"past_key_values.{i}.{part}": np.zeros((1, heads, 0, width), np.float32)
        for i, (heads, *widths) in enumerate(interface.past)
        for part, width in zip(("key", "value"), widths, strict=True)
    }
    return {name: arrays(interface, Case(name, 1, length), 0, drawn) | past for name, length in lengths.items()}


def median_ms(runner: Runner, inputs: Arrays) -> float:
    """Milliseconds of a run."""
    for _ in range(WARM_UP):
        runner.run(inputs)
    taken: list[float] = []
    while len(taken) < FEWEST or sum(taken) < SECONDS:
        begin = time.perf_counter()
        runner.run(inputs)
        taken.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(taken)
