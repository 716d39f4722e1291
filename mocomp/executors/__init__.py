"""Executors: who runs work that is in many parts, none of which needs another.

To add one, add a file with a class derived from `Executor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, TypeVar

from mocomp import terminal
from mocomp.errors import MissingDependency, Usage
from mocomp.registry import discover
from mocomp.resources import Resources

QUEUED = 8
"""Tasks handed over beside those that run, so that no worker waits while what is done is noted, and brought to disk for it."""


class Task(Protocol):
    """A part of some work. It may run in another thread, process or machine, and again where that one died, so it holds all
    that it needs and does the same each time; `nbytes` is the memory that it takes while it runs."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self) -> Any: ...


AnyTask = TypeVar("AnyTask", bound=Task)
Submit = Callable[[Task], "Future[Any]"]
"""Hands a task to a worker, and gives what will have its result."""


class Executor(ABC):
    """Runs tasks, as many at once as its resources allow: its workers, and the memory that all running tasks take together.
    A task that takes more than all of it runs alone."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    def __init__(self, resources: Resources | None = None):
        self.resources = resources or Resources()

    def missing(self) -> str | None:
        """Why it cannot run here, with the command that helps; None when it can."""
        return None

    def count(self) -> int:
        """How many workers it has."""
        return self.resources.count()

    @abstractmethod
    def workers(self) -> AbstractContextManager[Submit]:
        """The workers of one run, and how to hand them a task. When the block ends none of them works any more."""

    def run(self, tasks: Iterable[AnyTask]) -> Iterator[tuple[AnyTask, Any]]:
        """Each task with its result, as they end. Tasks are asked for as they are needed. What one raises is raised here,
        after those that run have ended."""
        waiting, running = iter(tasks), dict[Future[Any], AnyTask]()
        with self.workers() as submit:
            following = next(waiting, None)
            while following is not None or running:
                while following is not None and self._fits(following, running.values()):
                    running[submit(following)] = following
                    following = next(waiting, None)
                terminal.stop_if_interrupted()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), self.result(future)

    def result(self, future: Future[Any]) -> Any:
        """What a task returned. Raises what it raised."""
        return future.result()

    def start(self) -> None:  # noqa: B027 - most need nothing
        """Get what it needs to run. Raises OutOfReach where that is not to be had; `run` would too, but later."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what it holds."""

    def _fits(self, task: Task, running: Iterable[Task]) -> bool:
        held = [one.nbytes for one in running]
        return not held or (len(held) < self.count() + QUEUED and sum(held) + task.nbytes <= self.resources.nbytes())


def open_executor(resources: Resources) -> Executor:
    """The executor that resources name. Raises Usage for one that is none, MissingDependency for one that cannot run here."""
    known = discover("mocomp.executors", "Executor")
    if resources.executor not in known:
        raise Usage(f"no executor {resources.executor!r}; they are {', '.join(known)}")
    executor: Executor = known[resources.executor](resources)
    if (reason := executor.missing()) is not None:
        raise MissingDependency(reason.split(": ")[0], where=f"executor {executor.name}", fix=reason.partition(": ")[2])
    return executor
