"""Turns: every subject runs a little at every point, again and again, so that what disturbs the machine disturbs all alike.

The spread that is told is one that a second benchmark should stay in: from the 10th to the 90th percentile of all runs, and as
wide as the medians of the rounds are apart where these lie further out. Runs during which another process got the processor
tell of that process, and are left out where enough others are left. Rounds are separated in time, and subjects are loaded
anew between them, since where its memory comes to lie changes how fast a process is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from mocomp.bench.prepared import Prepared
from mocomp.bench.processes import Worker
from mocomp.bench.subjects import OURS, Subject
from mocomp.errors import Unsupported
from mocomp.verify.latency import latency_of

SHORT_S, LONG_S, PROCESSES = 3.0, 60.0, 3
"""A process that takes less to be ready is started anew in each round; one that takes less than the longer time PROCESSES times
in all; one that takes more is kept."""
FEWEST = 3
SPREAD = (
    "p10 to p90 of all runs, and at least as wide as the medians of the rounds are apart; runs during which another process "
    "got the processor are left out where three of a turn remain"
)
DISTURBED = 0.1
"""The share of runs during which others got the processor beyond which a benchmark says so."""


@dataclass
class Taken:
    """What was seen of one subject: seconds to load, memory, and the times of its runs in ms, by round and by point."""

    words: str = ""
    error: str = ""
    loads: list[float] = field(default_factory=list)
    imports_gb: float = 0.0
    peak_gb: float = 0.0
    runs: int = 0
    disturbed: int = 0
    times: dict[int, list[list[float]]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The subject in bench.json."""
        if self.error:
            return {"error": self.error}
        told = {"load_s": statistics.median(self.loads), "loads": len(self.loads), "words": self.words}
        return told | {"peak_gb": self.peak_gb, "imports_gb": self.imports_gb, "disturbed": self.disturbed / max(self.runs, 1)}


def disturbance(taken: dict[str, Taken]) -> list[str]:
    """What is to be known of a machine that others used meanwhile."""
    shares = {name: seen.disturbed / max(seen.runs, 1) for name, seen in taken.items()}
    told = ", ".join(f"{share:.0%} of the runs of {name}" for name, share in shares.items() if share > DISTURBED)
    return [f"another process got the processor during {told}; times are larger than on an idle machine"] if told else []


def summary(rounds: list[list[float]]) -> dict[str, Any]:
    """The times of rounds of runs, in ms -> median, p10, p90, runs, the spread from `low` to `high`, medians of the rounds."""
    whole = latency_of([ms for times in rounds for ms in times])
    medians = [statistics.median(times) for times in rounds]
    spread = {"low": min(whole.p10, *medians), "high": max(whole.p90, *medians)}
    return asdict(whole) | spread | {"rounds": medians}


class Turns:
    """The subjects of a benchmark with their processes; a context, at whose end no process is left."""

    def __init__(self, subjects: list[Subject], taken: dict[str, Taken], cpus: list[int], rounds: int):
        self.subjects, self.taken, self.cpus, self.rounds = subjects, taken, cpus, rounds
        self._workers: dict[str, Worker] = {}

    def __enter__(self) -> Turns:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()

    def also(self, worker: Worker) -> Worker:
        """A process that ends with the others."""
        self._workers[worker.name] = worker
        return worker

    def round(self, prepared: list[Prepared], seconds: float, advance: Callable[[int], None]) -> None:
        """One turn of every subject at every point. Raises Unsupported when the artifact itself fails; others drop out."""
        for subject in self.subjects:
            self._guarded(subject, lambda subject=subject: self._start(subject))
        for number, point in enumerate(prepared):
            for subject in self.subjects:
                self._guarded(subject, lambda s=subject, n=number, p=point: self._turn(s, n, p, seconds))
                advance(1)

    def _guarded(self, subject: Subject, work: Callable[[], None]) -> None:
        """Do it for a subject that is still there."""
        taken = self.taken[subject.name]
        if taken.error:
            return
        try:
            work()
        except Unsupported as error:
            if subject.name == OURS:
                raise
            taken.error = error.what
            self._stop(subject)

    def _start(self, subject: Subject) -> None:
        running = self._workers.get(subject.name)
        if running is not None:
            running.rounds += 1
            if running.rounds < self._lasts(running.ready_s):
                return
        self._stop(subject)
        worker = self._workers[subject.name] = Worker(subject.told, self.cpus)
        taken = self.taken[subject.name]
        taken.loads.append(worker.hello["load_s"])
        taken.words, taken.imports_gb = worker.hello["words"], worker.hello["imports_gb"]

    def _lasts(self, ready_s: float) -> float:
        """For how many rounds a process is kept that takes so long to be ready."""
        if ready_s < SHORT_S:
            return 1
        return math.ceil(self.rounds / PROCESSES) if ready_s < LONG_S else math.inf

    def _stop(self, subject: Subject) -> None:
        if (worker := self._workers.pop(subject.name, None)) is not None:
            worker.close()

    def _turn(self, subject: Subject, number: int, point: Prepared, seconds: float) -> None:
        worker = self._workers[subject.name]
        answer = worker.ask(file=str(point.file), seconds=seconds, fewest=FEWEST)
        worker.ready_s = max(worker.ready_s, worker.start_s + answer["warm_up_s"])
        taken = self.taken[subject.name]
        taken.times.setdefault(number, []).append(answer["ms"])
        taken.runs, taken.disturbed = taken.runs + answer["runs"], taken.disturbed + answer["disturbed"]
        taken.peak_gb = max(taken.peak_gb, answer["peak_gb"])
