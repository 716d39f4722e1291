"""How long a model takes for a run, on inputs that its interface asks for: the median of several runs, and their spread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from mocomp.models.interface import Interface
from mocomp.targets import Arrays, Runner
from mocomp.verify.inputs import Case, Drawn, arrays
from mocomp.verify.interruptions import interruptions, undisturbed

WARM_UP, FEWEST, SECONDS = 2, 5, 1.0
"""Runs that do not count; runs that count at least; how long runs are added to them at most."""
BRIEF_RUNS, BRIEF_SECONDS, BRIEF_LIMIT = 6, 0.015, 0.3
"""A brief timing, which every conversion pays for, ends after so many runs, if they took so long; on a machine that others use
it goes on, up to the longer time, for runs that nothing disturbed."""
ALONE = 3
"""Runs that others disturbed are left out where so many are left."""


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a run: the median, the 10th and the 90th percentile of so many runs."""

    median: float
    p10: float
    p90: float
    runs: int


def latency_of(times: list[float]) -> Latency:
    """The summary of the times of runs, in ms."""
    p10, median, p90 = (float(value) for value in np.percentile(times, (10, 50, 90)))
    return Latency(median, p10, p90, len(times))


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


def measure(run: Callable[[], Any], brief: bool = False) -> Latency:
    """Call it some times that do not count, then until the median is worth something; `brief` for no longer than needed."""
    for _ in range(WARM_UP):
        run()
    taken: list[tuple[float, int]] = []
    while len(taken) < FEWEST or not _enough(taken, brief):
        before = interruptions()
        begin = time.perf_counter()
        run()
        seconds = time.perf_counter() - begin
        taken.append((1e3 * seconds, interruptions() - before))
    return latency_of(undisturbed(taken, ALONE))


def _enough(taken: list[tuple[float, int]], brief: bool) -> bool:
    total = sum(ms for ms, _ in taken) / 1e3
    if not brief or total >= BRIEF_LIMIT:
        return brief or total >= SECONDS
    alone = sum(not others for _, others in taken)
    return len(taken) >= BRIEF_RUNS and total >= BRIEF_SECONDS and alone >= ALONE


def median_ms(runner: Runner, inputs: Arrays) -> float:
    """Milliseconds of a run."""
    return measure(lambda: runner.run(inputs)).median


def of_artifact(runner: Runner, given: dict[str, Arrays]) -> dict[str, dict[str, float]]:
    """Brief timings of an artifact on workloads, as they stand in the report."""
    return {name: asdict(measure(lambda inputs=inputs: runner.run(inputs), brief=True)) for name, inputs in given.items()}


def of_original(model: Any, given: dict[str, Arrays]) -> dict[str, dict[str, float]]:
    """The same of a model of transformers, which makes its cache itself."""
    return {name: asdict(measure(_call(model, inputs), brief=True)) for name, inputs in given.items()}


def _call(model: Any, inputs: Arrays) -> Callable[[], Any]:
    tensors: dict[str, Any] = {n: torch.from_numpy(a) for n, a in inputs.items() if not n.startswith("past_key_values")}
    cached = {"use_cache": True} if len(tensors) < len(inputs) else {}

    @torch.inference_mode()
    def run() -> Any:
        return model(**tensors, **cached)

    return run
