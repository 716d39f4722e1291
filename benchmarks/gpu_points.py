"""One point of `gpu.py`: every subject on the same tokens, checked against torch before it is timed, in turns.

Between runs the caches are filled with other data, as a model's other layers do, and the device is waited for before and
after, so a time is what one call takes as a whole.

Dimension letters: T tokens, E experts, K chosen.
"""

from __future__ import annotations

import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from gpu_layers import Inputs, OneLayer, chosen_by
from gpu_limits import Limits, synchronise, work_of
from gpu_subjects import Case, Subject, Unavailable
from torch import Tensor

WARM, ROUNDS, RUNS = 3, 5, 4
LONGEST = 120
"""Seconds that a subject may take to be ready, for a layer and again for a point: exporting and compiling know no end."""
CLEAR = 0.25
"""Share of the tokens, those with the widest margin, whose choice of experts no rounding changes."""


class DeviceLost(Exception):
    """After this subject the device answers no more; a new process has to go on."""


@dataclass(frozen=True)
class Truth:
    """What torch gives in float32: output [T, N], margin [T] of the choice, and how many experts were hit."""

    output: Tensor
    margin: Tensor
    experts_hit: int

    @classmethod
    def of(cls, layer: OneLayer, inputs: Inputs, scope: str) -> Truth:
        output, ids, margin = chosen_by(layer, inputs, scope)
        return cls(output.clone(), margin.clone(), ids.unique().numel())

    def errors(self, output: Tensor) -> tuple[float, float]:
        """(the largest of tokens whose choice is clear, the median of all) of |a - b| / |b|, of a token's outputs."""
        output = output.reshape(self.output.shape).float()
        each = (output - self.output).norm(dim=-1) / self.output.norm(dim=-1)
        each = torch.where(each.isfinite(), each, torch.inf)
        clear = self.margin.topk(max(1, int(CLEAR * len(self.margin)))).indices
        return float(each[clear].max()), float(each.median())


@dataclass
class Point:
    """A scope of a layer at some tokens."""

    case: Case
    scope: str
    inputs: Inputs
    truth: Truth
    limits: Limits

    def measure(self, subjects: list[Subject], trying: Callable[[str], None]) -> dict[str, dict[str, Any]]:
        """A row per subject: its times, or why it has none; `trying` is told who is at work."""
        rows, calls = {}, {}
        for subject in (subject for subject in subjects if self.scope in subject.scopes):
            trying(subject.name)
            rows[subject.name], call = self._checked(subject)
            if call is not None:
                calls[subject.name] = call
        for name, times in self._turns(calls).items():
            rows[name] |= {"ms": statistics.median(times), "spread": spread(times), "runs": len(times)}
        fastest = min((row["ms"] for row in self._torch(subjects, rows)), default=None)
        for row in rows.values():
            if "ms" in row:
                row["ratio_to_bound"] = row["ms"] / row["bound_ms"]
                row["ratio_to_fastest_torch"] = row["ms"] / fastest if fastest else None
        return rows

    def _checked(self, subject: Subject) -> tuple[dict[str, Any], Callable[[], Tensor] | None]:
        """The row of a subject as far as it goes, and what to time if its numbers are right."""
        try:
            with within(LONGEST):
                call = subject.call(self.scope, self.inputs)
                synchronise(self.case.device)  # others run on streams of their own
                output = call()
                synchronise(self.case.device)
                worst, median = self.truth.errors(output)
                for _ in range(WARM):
                    call()
                synchronise(self.case.device)
        except Exception as error:  # whatever a subject fails with is its result
            survive(subject, self.case.device, error)
            return {"reason": reason_of(error)}, None
        row: dict[str, Any] = {"error": worst, "median_error": median, "bound_ms": self.bound_ms(subject)}
        if max(worst, median) > subject.tolerance:
            return {**row, "reason": f"wrong numbers: {worst:.1e} off, and rounding explains {subject.tolerance:.0e}"}, None
        return row, call

    def bound_ms(self, subject: Subject) -> float:
        """The roofline of a subject: the experts hit in its own bits, its products in its own type."""
        dense = torch.finfo(getattr(torch, subject.dtype)).bits
        tokens = self.inputs.ids.shape[1]
        work = work_of(self.case.layout, self.scope, tokens, self.truth.experts_hit, subject.bits, dense)
        return self.limits.bound_ms(work, subject.dtype)

    def _turns(self, calls: dict[str, Callable[[], Tensor]]) -> dict[str, list[float]]:
        """Milliseconds of every run, a few at a time from each, so that what slows the machine hits all."""
        times: dict[str, list[float]] = {name: [] for name in calls}
        other = torch.zeros(_cache_bytes(self.case.device) // 4, device=self.case.device)
        for _ in range(ROUNDS):
            for name, call in calls.items():
                for _ in range(RUNS):
                    other.add_(1)
                    times[name].append(_time(call, self.case.device))
        return times

    @staticmethod
    def _torch(subjects: list[Subject], rows: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
        return [rows[s.name] for s in subjects if s.from_torch and "ms" in rows.get(s.name, {})]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raises Unavailable when what is done inside takes longer, as soon as Python comes to run again."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Unavailable(f"took more than {seconds} s to be ready")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def survive(subject: Subject, device: str, error: BaseException) -> None:
    """Raises DeviceLost when the device is in error after a subject failed."""
    try:
        synchronise(device)
        if device == "cuda":
            torch.cuda.empty_cache()
    except RuntimeError as lost:
        raise DeviceLost(f"{subject.name}: {reason_of(error)}") from lost


def reason_of(error: BaseException) -> str:
    """One line."""
    first = next(iter(str(error).splitlines()), "")[:300]
    return first if isinstance(error, Unavailable) else f"{type(error).__name__}: {first}"


def spread(times: list[float]) -> float:
    """The range of the middle half, as a share of the median."""
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def _time(call: Callable[[], Tensor], device: str) -> float:
    synchronise(device)
    begin = time.perf_counter()
    call()
    synchronise(device)
    return 1e3 * (time.perf_counter() - begin)


def _cache_bytes(device: str) -> int:
    """More than the last cache holds."""
    return 4 * torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 16 << 20
