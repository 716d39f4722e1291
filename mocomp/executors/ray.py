"""Processes of a Ray cluster, on this machine or many; all of them see one file system.

A task travels by Ray's own serialisation, between processes that this one started or was told to trust by its address, and
its result, a few checksums, comes back the same way. A worker that dies is replaced, and its task runs again.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, ClassVar

from mocomp.errors import OutOfReach, Usage
from mocomp.executors import Executor, Submit, Task
from mocomp.threads import only_one

RETRIES = 3
"""Times that a task runs again where its worker died."""
START = "`ray start --head`, which says its HOST:PORT"
OBJECTS = 80 << 20
"""Bytes of shared memory that Ray sets aside, nearly its least: results are checksums."""


class Ray(Executor):
    """Tasks in processes of Ray: its own, on this machine, or those of the cluster at `Resources.address`."""

    name: ClassVar[str] = "ray"
    summary: ClassVar[str] = "processes of Ray, here or on the cluster of --address, over a shared file system"

    _started = False

    def start(self) -> None:
        """Starts Ray or joins the cluster. Raises OutOfReach where none answers."""
        self._ray()

    def missing(self) -> str | None:
        return None if find_spec("ray") else "ray is not installed: pip install 'mocomp[ray]'"

    def count(self) -> int:
        """As many as asked for, else as there are cores: of the cluster, or that this process may use."""
        if self.resources.workers or not self.resources.address:
            return self.resources.count()
        return max(int(self._ray().cluster_resources().get("CPU", 1)), 1)

    @contextmanager
    def workers(self) -> Iterator[Submit]:
        ray = self._ray()
        perform = ray.remote(num_cpus=1, max_retries=RETRIES, retry_exceptions=False)(_perform)
        given: set[Future[Any]] = set()

        def submit(task: Task) -> Future[Any]:
            future = perform.remote(task).future()
            given.add(future)
            future.add_done_callback(given.discard)
            return future

        try:
            yield submit
        finally:
            wait(tuple(given))

    def result(self, future: Future[Any]) -> Any:
        """What a task returned. Raises what it raised, and OutOfReach where its worker died too often."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return future.result()
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise OutOfReach(
                f"a part of the work could not be done: {str(error).splitlines()[0]}",
                where="executor ray",
                fix="Memory may have run out: use fewer --workers. `--executor local` does without Ray.",
            ) from error

    def close(self) -> None:
        """Ends the processes that it started, or leaves the cluster that it joined; what the calling program had started or
        joined before stays."""
        if self._started:
            import ray

            self._started = False
            ray.shutdown()

    def _ray(self) -> Any:
        """Ray, started or joined; it neither reports its usage, which it would do by itself, nor takes our signals."""
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        if self.resources.address:
            _refuse_absent(self.resources.address)
        if ray.is_initialized():
            return ray
        here: dict[str, Any] = {"num_cpus": self.resources.count(), "object_store_memory": OBJECTS, "include_dashboard": False}
        place: dict[str, Any] = {"address": self.resources.address} if self.resources.address else here
        handler = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**place, log_to_driver=False, logging_level=logging.ERROR)
            self._started = True
        except (ConnectionError, ValueError, RuntimeError) as error:
            where = self.resources.address or "executor ray"
            raise OutOfReach(
                f"Ray cannot be used: {str(error).splitlines()[0]}", where=where, fix="See `ray status`."
            ) from error
        finally:
            signal.signal(signal.SIGTERM, handler)
        return ray


def _refuse_absent(address: str) -> None:
    """Raises OutOfReach where nothing answers: Ray itself would try for minutes. `auto` is a cluster of this machine, which Ray
    knows of. Raises Usage for what is no address, and for Ray's client, which has no part in the cluster's file system."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 1 << 16) or "://" in address:
        raise Usage(f"--address {address!r} is no HOST:PORT", fix=f"Say {START}, or auto for the one of this machine.")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise OutOfReach(f"no Ray cluster answers: {error}", where=address, fix=f"Start one with {START}.") from error


def _perform(task: Task) -> Any:
    """A task, in a process of Ray."""
    only_one()
    return task()
