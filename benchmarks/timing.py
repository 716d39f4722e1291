"""Measuring processes: what one costs from start to end, and answers of several that take turns."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

GIB = 1 << 30


@dataclass(frozen=True)
class Cost:
    """Wall time and peak resident memory of a process and its children."""

    seconds: float
    peak_gib: float


def cost(command: Sequence[str | Path], log: Path, environment: dict[str, str] | None = None) -> Cost:
    """Run `command` to its end; what it prints goes to `log`, whose end is quoted when it fails."""
    begin = time.perf_counter()
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **(environment or {})})
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(map(str, command))} failed with {process.returncode}:\n{tail}")
    return Cost(seconds, usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) / GIB)


class Worker:
    """A `runners.py` process, and the questions it is asked."""

    def __init__(self, python: str, kind: str, directory: Path, threads: int):
        script = Path(__file__).with_name("runners.py")
        command = [python, script, kind, directory, str(threads)]
        self.complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the worker
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.complaints,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        hello = self._read()
        self.load_s: float = hello["load_s"]
        self.variants: list[str] = hello["variants"]

    def ask(self, **request: object) -> dict:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()
        self.complaints.close()

    def _read(self) -> dict:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            status = self.process.wait()
            self.complaints.seek(0)
            raise RuntimeError(f"{self.process.args} ended with {status}:\n{self.complaints.read()[-2000:]}")
        return json.loads(line)


@dataclass(frozen=True)
class Workload:
    """`tokens` new tokens after `past` cached ones, timed `runs` times per turn."""

    name: str
    tokens: int
    past: int
    runs: int


WORKLOADS = (
    Workload("1 token", 1, 128, 20),
    Workload("128 tokens", 128, 0, 4),
    Workload("512 tokens", 512, 0, 2),
)


@dataclass
class Samples:
    """Every measured time of one model on one workload, in ms, and the logits it gave."""

    times: list[float] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.times)


def take_turns(
    workers: dict[str, Worker], config: dict, repeats: int, skip: Iterable[tuple[str, str]] = ()
) -> dict[tuple[str, str], Samples]:
    """Time every variant of every worker on every workload, a short turn each, so that noise hits all alike."""
    samples: dict[tuple[str, str], Samples] = {}
    for _ in range(repeats):
        for workload in WORKLOADS:
            for name, worker in workers.items():
                for variant in worker.variants:
                    key = (f"{name} {variant}".strip(), workload.name)
                    if key in skip:
                        continue
                    request = {"tokens": workload.tokens, "past": workload.past, "runs": workload.runs}
                    answer = worker.ask(variant=variant, config=config, **request)
                    known = samples.setdefault(key, Samples(logits=answer["logits"]))
                    known.times += answer["ms"]
    return samples


def load_times(python: str, kind: str, directory: Path, threads: int, repeats: int) -> list[float]:
    """Seconds to create the model in `repeats` fresh processes, the files being in the page cache."""
    times = []
    for _ in range(repeats):
        worker = Worker(python, kind, directory, threads)
        worker.close()
        times.append(worker.load_s)
    return times
