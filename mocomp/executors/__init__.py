"""Executors: who runs work that is in many parts, none of which needs another.

To add one, add a file with a class derived from `Executor`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Protocol, TypeVar

from mocomp.errors import MissingDependency, Usage
from mocomp.registry import discover
from mocomp.resources import Resources


class Task(Protocol):
    """A part of some work. It may run in another thread, process or machine, and again where that one died, so it holds all
    that it needs and does the same each time; `nbytes` is the memory that it takes while it runs."""

    @property
    def nbytes(self) -> int: ...

    def __call__(self) -> Any: ...


AnyTask = TypeVar("AnyTask", bound=Task)


class Executor(ABC):
    """Runs tasks, as many at once as its resources allow."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""

    def __init__(self, resources: Resources | None = None):
        self.resources = resources or Resources()

    def missing(self) -> str | None:
        """Why it cannot run here, with the command that helps; None when it can."""
        return None

    @abstractmethod
    def run(self, tasks: Iterable[AnyTask]) -> Iterator[tuple[AnyTask, Any]]:
        """Each task with its result, as they end. Tasks are asked for as they are needed. What one raises is raised here,
        after those that run have ended."""

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Give back what it holds."""


def open_executor(resources: Resources) -> Executor:
    """The executor that resources name. Raises Usage for one that is none, MissingDependency for one that cannot run here."""
    known = discover("mocomp.executors", "Executor")
    if resources.executor not in known:
        raise Usage(f"no executor {resources.executor!r}; they are {', '.join(known)}")
    executor: Executor = known[resources.executor](resources)
    if (reason := executor.missing()) is not None:
        raise MissingDependency(reason.split(": ")[0], where=f"executor {executor.name}", fix=reason.partition(": ")[2])
    return executor
