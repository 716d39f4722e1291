"""What the user sees: mocomp's own lines on standard error, everything the libraries say in a log file."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

SOONEST, LATEST, SHARE = 10.0, 300.0, 0.1
"""A log hears of work that goes on after so many seconds if so much more of it is done, and after the longer time anyway."""

_console = Console(stderr=True, highlight=False)
_interrupted = False
_waiting: Progress | None = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise KeyboardInterrupt inside, and are remembered.

    Remembered, because an exception that strikes inside a callback or a destructor of a library is swallowed there;
    `stop_if_interrupted`, at the end of each phase, raises it again.
    """
    global _interrupted
    _interrupted = False
    saved = {number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in saved.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _interrupted
    _interrupted = True
    raise KeyboardInterrupt


def stop_if_interrupted() -> None:
    """Raise the KeyboardInterrupt of a signal that came since `interruptible` was entered."""
    if _interrupted:
        raise KeyboardInterrupt


def printable(text: str) -> str:
    """Text with its control characters spelled out, but for line ends and tabs.

    Names in a checkpoint may hold sequences that move a terminal's cursor, change its title or turn the order of letters.
    """
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def say(line: str) -> None:
    """One line to the user."""
    _wait_no_more()
    _console.print(printable(line), markup=False, soft_wrap=True)


@contextmanager
def quiet() -> Iterator[Path]:
    """Send what libraries print, warn and log to a file, and give its path; mocomp's own lines still reach the user.

    The file descriptors themselves are redirected, since half of what is printed comes from C++.
    """
    handle, name = tempfile.mkstemp(prefix="mocomp-", suffix=".log")
    path = Path(name)
    saved = [(number, os.dup(number)) for number in (1, 2)]
    global _console
    outer = _console
    sys.stdout.flush()
    sys.stderr.flush()
    with os.fdopen(os.dup(saved[1][1]), "w") as screen:
        _console = Console(file=screen, highlight=False, force_terminal=os.isatty(saved[1][1]))
        for number, _ in saved:
            os.dup2(handle, number)
        logging.captureWarnings(True)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("default")
                yield path
        finally:
            logging.captureWarnings(False)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in saved:
                os.dup2(copy, number)
                os.close(copy)
            os.close(handle)
            _console = outer


@contextmanager
def unsaid() -> Iterator[None]:
    """Nothing that is said inside reaches the user: for many small works, of which only the sum is of interest."""
    global _console
    outer = _console
    _console = Console(quiet=True)
    try:
        yield
    finally:
        _console = outer


@contextmanager
def starting() -> Iterator[None]:
    """A running clock on a terminal until there is something else to show; to import the libraries takes seconds."""
    global _waiting
    if _draws():
        _waiting = _clock(_Work("starting"))
        _waiting.start()
    try:
        yield
    finally:
        _wait_no_more()


def _wait_no_more() -> None:
    global _waiting
    if _waiting is not None:
        _waiting.stop()
        _waiting = None


@contextmanager
def progress(label: str, total: int, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """Work on `total` bytes, or other units; gives what is to be told how many more are done.

    A bar on a terminal; in a log a line at the start, and others now and then. One line at the end, with the time taken and the
    peak memory of the process so far.
    """
    work = _Work(label, total, unit)
    if not _draws():
        say(f"{label}: {work.amount(total)}")
        yield work.advance_in_log
    else:
        with _bar(TextColumn("{task.description}"), BarColumn(20), _Figures(work)) as bar:
            task = bar.add_task(label, total=total)
            yield lambda count: bar.update(task, completed=work.advance(count))
    _conclude(work)


@contextmanager
def phase(label: str) -> Iterator[None]:
    """Work of which nobody knows how much there is: a running clock on a terminal, a line at the start in a log.

    One line at the end, with the time taken and the peak memory of the process so far.
    """
    work = _Work(label)
    if not _draws():
        say(label)
    with _clock(work) if _draws() else nullcontext():
        yield
    _conclude(work)


def peak_memory() -> float:
    """The most memory that this process held at once so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def duration(seconds: float) -> str:
    """Seconds as people say them: 2.1 s, 3 min 5 s, 1 h 12 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


@dataclass
class _Work:
    """Work of `total` units, None where nobody knows; when it began, how much is done, and when a log was last told."""

    label: str
    total: int | None = None
    unit: str = ""
    done: int = 0
    began: float = field(default_factory=lambda: time.perf_counter())
    told: float = 0.0
    told_done: int = 0

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.began

    @property
    def remaining(self) -> float | None:
        """Seconds that the rest will take at the pace so far; None before there is one."""
        if not self.done or self.total is None:
            return None
        return self.seconds * max(self.total / self.done - 1, 0.0)

    def amount(self, count: float, unit: bool = True) -> str:
        """Units as people say them: 5.1 MB, 12 rows."""
        if self.unit != "bytes":
            return f"{count:.10g} {self.unit}" if unit else f"{count:.10g}"
        scale, name = (1e9, "GB") if (self.total or 0) >= 1e9 else (1e6, "MB")
        return f"{count / scale:.1f} {name}" if unit else f"{count / scale:.1f}"

    def so_far(self) -> str:
        """2.1 of 5.1 MB."""
        return "" if self.total is None else f"{self.amount(self.done, unit=False)} of {self.amount(self.total)}"

    def advance(self, count: int) -> int:
        """How much is done when `count` more is."""
        self.done += count
        return self.done

    def advance_in_log(self, count: int) -> None:
        """The same, with a line when one is due."""
        self.advance(count)
        since, more, total = self.seconds - self.told, self.done - self.told_done, self.total or 0
        if since < SOONEST or (since < LATEST and more < SHARE * total) or self.done >= total:
            return
        self.told, self.told_done = self.seconds, self.done
        pace, name = self.done / self.seconds, self.amount(0).split()[-1]
        shown = self.amount(pace, unit=False) if self.unit == "bytes" else f"{pace:.3g}"
        say(f"{self.label}: {self.so_far()}, {self.done / total:.0%}, {shown} {name}/s, {duration(self.remaining or 0)} left")


class _Figures(ProgressColumn):
    """2.1 of 5.1 MB, 3.0 s, 4.2 s left."""

    def __init__(self, work: _Work):
        super().__init__()
        self.work = work

    def render(self, task: Task) -> Text:
        left = self.work.remaining
        parts = [self.work.so_far(), duration(self.work.seconds), "" if left is None else f"{duration(left)} left"]
        return Text(", ".join(part for part in parts if part), no_wrap=True, overflow="ellipsis")


def _draws() -> bool:
    """Whether lines can be drawn anew: a terminal, and one that knows how."""
    return _console.is_terminal and not _console.is_dumb_terminal


def _clock(work: _Work) -> Progress:
    """What shows that work of unknown length goes on."""
    drawn = _bar(SpinnerColumn("line"), TextColumn("{task.description}"), _Figures(work))
    drawn.add_task(work.label, total=None)
    return drawn


def _bar(*columns: ProgressColumn) -> Progress:
    """What libraries print meanwhile is left alone: rich would bring it to the screen, and it belongs into the log."""
    _wait_no_more()
    return Progress(*columns, console=_console, transient=True, redirect_stdout=False, redirect_stderr=False)


def _conclude(work: _Work) -> None:
    stop_if_interrupted()
    amount = f"{work.amount(work.done)} in " if work.done else ""
    say(f"{work.label}: {amount}{duration(work.seconds)}, peak memory {peak_memory():.2f} GB")
