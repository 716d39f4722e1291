"""Several runs of one model, of which a part at a time is in memory: all that want it run, and then comes the next.

Each run is in a thread of its own, and never two at once: a run goes on until it wants a part that is not there, and waits.
When all wait, the part that comes next is brought in. So a model is read once for many runs, whatever its forward does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Hashable, Sequence
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Abandoned(BaseException):
    """Another run failed, so this one ends."""


class Turns:
    """`bring` makes a part, by its key, the one that is there."""

    def __init__(self, bring: Callable[[Any], None]):
        self._bring = bring
        self.here: Hashable = None
        self._last = -1
        self._ranks: dict[Hashable, int] = {}
        self._runs: dict[int, _Run] = {}

    def want(self, key: Hashable) -> None:
        """Returns when the part is there; called inside a run, or by whoever runs alone."""
        self._ranks.setdefault(key, len(self._ranks))
        run = self._runs.get(threading.get_ident())
        if run is None:
            self._move(key)
            return
        while key != self.here:
            run.wait_for(key)

    def run(self, works: Sequence[Callable[[], Result]]) -> list[Result]:
        """What each gives. What one raises is raised here, after the others were ended."""
        steps = self.steps(works)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                return end.value

    def steps(self, works: Sequence[Callable[[], Result]]) -> Generator[Any, None, list[Result]]:
        """As `run`, that stops at each part that all who wanted it are done with for now, and gives its key."""
        runs = [_Run(work, self._runs) for work in works]
        try:
            for run in runs:
                run.go_on()
            while waiting := [run for run in runs if run.wanted is not None]:
                self._move(min((run.wanted for run in waiting), key=self._distance))
                for run in [run for run in waiting if run.wanted == self.here]:
                    run.go_on()
                yield self.here
        finally:
            for run in runs:
                run.end()
            self._runs.clear()
        return [run.result for run in runs]

    def gone(self) -> None:
        """The part that was there was let go."""
        self.here = None

    def _distance(self, key: Hashable) -> int:
        """How far a part is behind the one that is there, in the order in which parts were first wanted, round and round."""
        return (self._ranks[key] - self._last) % (len(self._ranks) + 1)

    def _move(self, key: Hashable) -> None:
        if key != self.here:
            self.here = None  # nothing is, when `bring` fails
            self._bring(key)
            self.here, self._last = key, self._ranks[key]


class _Run:
    """A thread that runs only while whoever started it waits; `wanted` is the part that it waits for."""

    def __init__(self, work: Callable[[], Any], runs: dict[int, _Run]):
        self.work, self.runs = work, runs
        self.wanted: Hashable = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.abandoned = False
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._work, daemon=True)

    def go_on(self) -> None:
        """Let it run until it waits, or has ended. Raises what it raised."""
        self.wanted = None
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._back.acquire()
        if self.error is not None:
            raise self.error

    def wait_for(self, key: Hashable) -> None:
        self.wanted = key
        self._back.release()
        self._go.acquire()
        if self.abandoned:
            raise _Abandoned

    def end(self) -> None:
        if self._thread.is_alive():
            self.abandoned = True
            self._go.release()
            self._thread.join()

    def _work(self) -> None:
        self.runs[threading.get_ident()] = self
        try:
            self.result = self.work()
        except _Abandoned:
            return
        except BaseException as error:
            self.error = error
        finally:
            self._back.release()
