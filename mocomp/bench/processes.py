"""The processes of a benchmark, from the side of the one that asks."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from mocomp.errors import Unsupported

HERE = str(Path(__file__).resolve().parents[2])
"""Where mocomp is: a process that is started runs the same one, wherever it is started."""
PATIENCE_S, FAREWELL_S = 1800, 5
"""How long a process may take for an answer, since compiling and exporting are slow; and to end once it is not asked more."""


class Worker:
    """A `worker.py` process with one subject, on the processors `cpus`, with a thread for each.

    Raises Unsupported, in the process's own words, when it cannot hold the subject or does not answer.
    """

    def __init__(self, told: dict[str, Any], cpus: list[int]):
        self.name = str(told.get("name", told["kind"]))
        self._complaints = tempfile.TemporaryFile("w+")  # noqa: SIM115 - open as long as the worker
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(len(cpus)))
        paths = [HERE, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "mocomp.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._complaints,
            env=os.environ | threads | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            bufsize=0,
        )
        try:
            self.hello = self.ask(**told | {"threads": len(cpus), "cpus": cpus})
        except BaseException:
            self.close()
            raise
        self.start_s = self.ready_s = time.perf_counter() - begin
        self.rounds = 0

    def ask(self, **request: Any) -> dict[str, Any]:
        """The answer to a request."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            self._ended()
        answer = json.loads(self._line())
        if "error" in answer:
            raise Unsupported(answer["error"], where=self.name)
        return answer

    def close(self) -> None:
        """End the process, and wait until it has ended."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        try:
            self._process.wait(timeout=FAREWELL_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._complaints.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line, end = b"", time.monotonic() + PATIENCE_S
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], max(end - time.monotonic(), 0))[0]:
                raise Unsupported(f"no answer in {PATIENCE_S} s", where=self.name)
            part = os.read(self._process.stdout.fileno(), 1 << 16)
            if not part:
                self._ended()
            line += part
        return line

    def _ended(self) -> None:
        """Raises Unsupported with how the process ended."""
        status = self._process.wait()
        self._complaints.seek(0)
        said = self._complaints.read().strip().splitlines()[-1:] or ["nothing"]
        killed = " (killed: out of memory?)" if status == -9 else ""
        raise Unsupported(f"its process ended with {status}{killed}, saying {said[0][:300]}", where=self.name)
