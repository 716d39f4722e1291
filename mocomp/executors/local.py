"""Threads of this process: torch, the disk and checksums all run outside Python's lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

from mocomp.executors import AnyTask, Executor


class Local(Executor):
    """Tasks in threads of this process."""

    name: ClassVar[str] = "local"
    summary: ClassVar[str] = "threads of this process"

    def run(self, tasks: Iterable[AnyTask]) -> Iterator[tuple[AnyTask, Any]]:
        for task in tasks:
            yield task, task()
