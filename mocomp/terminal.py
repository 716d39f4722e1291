"""What the user sees: mocomp's own lines on standard error, everything the libraries say in a log file."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_console = Console(stderr=True, highlight=False)


_interrupted = False


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


def say(line: str) -> None:
    """One line to the user."""
    _console.print(line, markup=False, soft_wrap=True)


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
def progress(label: str, total: int, unit: str = "bytes") -> Iterator[Callable[[int], None]]:
    """A bar over `total` bytes, or other units, on a terminal; elsewhere one line at the start."""
    if not _console.is_terminal:
        say(f"{label}: {total / 1e6:.0f} MB" if unit == "bytes" else f"{label}: {total} {unit}")
        yield lambda count: None
        return
    amount = (DownloadColumn(), TransferSpeedColumn()) if unit == "bytes" else (MofNCompleteColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    with Progress(*columns, console=_console, transient=True) as bar:
        task = bar.add_task(label, total=total)
        yield lambda count: bar.advance(task, count)
