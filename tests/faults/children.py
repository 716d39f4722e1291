"""Conversions in processes of their own, which die in the middle.

They are forked from a server that has imported everything and traced the models, so that what is disturbed is the writing.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from mocomp.outcome import outcome_of
from mocomp.weights import disk
from tests.faults import conversion

SOURCES = "MOCOMP_FAULTS_SOURCES"
"""Variable of the environment that tells the server what to trace."""


class LosingDisk(disk.System):
    """A disk of a machine that loses its power at call number `at`: what nobody waited for is gone, and so is the process.

    Names survive, as file systems with a journal have it, while what was written since the last `sync` does not.
    """

    def __init__(self, at: int, directory: Path):
        self.at, self.directory, self.number = at, directory, 0
        self.safe: dict[int, bytes] = {}
        self.dying = threading.Lock()

    def __getattribute__(self, name: str) -> Any:
        call = super().__getattribute__(name)
        return call if not hasattr(disk.System, name) or name.startswith("_") else self._counted(name, call)

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            self.number += 1
            if self.number > self.at:
                self.lose()
            result = call(*arguments)
            if name == "sync":
                path = Path(f"/proc/self/fd/{arguments[0]}")
                if path.is_file():
                    self.safe[path.stat().st_ino] = path.read_bytes()
            return result

        return counted

    def lose(self) -> None:
        self.dying.acquire()  # for good: another thread that comes here would still be at it when this one ends the process
        for path in self.directory.rglob("*"):
            if path.is_file():
                path.write_bytes(self.safe.get(path.stat().st_ino, b""))
        os._exit(1)


def lost(kind: str, sources: Path, output: Path, at: int) -> None:
    """A conversion during which the power fails."""
    _quietly()
    disk.system = LosingDisk(at, output.parent)  # type: ignore[assignment]
    conversion.run(kind, sources, output)


def converted(kind: str, sources: Path, output: Path, largest: int = 0) -> None:
    """A conversion as a shell runs it, in which no file may have more than `largest` bytes."""
    _quietly()
    if largest:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    outcome_of(lambda: conversion.run(kind, sources, output, workers=2))


def server(sources: Path) -> Any:
    """What forks processes in which the models of `sources` are traced already."""
    os.environ[SOURCES] = str(sources)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.children"])
    return context


def start(context: Any, work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Begin with one in a process of its own."""
    child = context.Process(target=work, args=arguments)
    child.start()
    return child


def _quietly() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)


if SOURCES in os.environ and multiprocessing.parent_process() is None:
    with tempfile.TemporaryDirectory() as place:
        for warmed in ("checkpoint", "upcycle"):
            conversion.run(warmed, Path(os.environ[SOURCES]), Path(place) / warmed)
