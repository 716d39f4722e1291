"""A process that holds one subject and answers requests about it, one JSON object a line; it imports what its subject needs.

The first line says what to hold, `{"kind", "threads", "cpus", ...}`; its answer is `{"load_s", "words", ...}`. Between requests
it sleeps, so that subjects which take turns do not compete for the cores.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

from mocomp.bench.machine import peak_gb, pin
from mocomp.verify.interruptions import interruptions, undisturbed

KINDS = {
    "onnx": "onnx_subject.OnnxSubject",
    "target": "target_subject.TargetSubject",
    "torch": "torch_subject.TorchSubject",
    "exporter": "exporter.Exporter",
    "roofline": "roofline.Measure",
}
"""Each is made of the first line's object, and has an `answer(request) -> object`."""
MOST_RUNS, WARM_UP = 2000, 2


class Timed:
    """A subject that runs a model: `ready(file)` gives what makes the next run, whose making is not timed."""

    words = ""

    def ready(self, file: str) -> Callable[[], Callable[[], Any]]:
        """Load the inputs in a file."""
        raise NotImplementedError

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Time runs on `file`: for `seconds` and `fewest` of them at least, after half as long that does not count.

        Runs during which the system took a processor away for others are left out, where `fewest` are left.
        """
        make, seconds, fewest = self.ready(request["file"]), request["seconds"], request["fewest"]
        begin = time.perf_counter()
        _times(make, seconds / 2, WARM_UP)
        warm_up = time.perf_counter() - begin
        taken = _times(make, seconds, fewest)
        return {
            "ms": undisturbed(taken, fewest),
            "runs": len(taken),
            "disturbed": sum(others > 0 for _, others in taken),
            "warm_up_s": warm_up,
        }


def _times(make: Callable[[], Callable[[], Any]], seconds: float, fewest: int) -> list[tuple[float, int]]:
    """(ms of a run, how often the system gave its processors to others)."""
    taken: list[tuple[float, int]] = []
    spent = 0.0
    while len(taken) < fewest or (spent < seconds and len(taken) < MOST_RUNS):
        run = make()
        before = interruptions()
        begin = time.perf_counter()
        run()
        took = time.perf_counter() - begin
        taken.append((1e3 * took, interruptions() - before))
        spent += took
    return taken


def main() -> None:
    """Hold what the first line of standard input says, and answer the others until there are no more."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print is no answer
        subject = None
        for line in sys.stdin:
            request = json.loads(line)
            try:
                if subject is None:
                    subject, answer = _held(request)
                else:
                    answer = subject.answer(request)
                answer["peak_gb"] = peak_gb()
            except Exception as error:
                first = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
                answer = {"error": first if hasattr(error, "exit_code") else f"{type(error).__name__}: {first}"}
            print(json.dumps(answer), file=answers, flush=True)


def _held(request: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The subject, and how long it took to load, imports aside."""
    pin(request["cpus"])
    module, _, name = KINDS[request["kind"]].partition(".")
    kind = getattr(import_module(f"mocomp.bench.{module}"), name)
    imports = peak_gb()
    begin = time.perf_counter()
    subject = kind(request)
    return subject, {"load_s": time.perf_counter() - begin, "imports_gb": imports, "words": subject.words}


if __name__ == "__main__":
    main()
