"""Threads of this process: torch, the disk and checksums all run outside Python's lock."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import ClassVar

from mocomp.executors import Executor, Submit
from mocomp.threads import one_thread, only_one


class Local(Executor):
    """Tasks in threads of this process."""

    name: ClassVar[str] = "local"
    summary: ClassVar[str] = "threads of this process"

    @contextmanager
    def workers(self) -> Iterator[Submit]:
        with one_thread(), ThreadPoolExecutor(self.count(), "mocomp", only_one) as pool:
            try:
                yield pool.submit
            finally:
                pool.shutdown(cancel_futures=True)
