"""Tasks for executors to run; in a module, as other processes have to find them."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from mocomp.errors import BadInput


@dataclass(frozen=True)
class Square:
    """A number times itself, and who found it."""

    number: int
    nbytes: int = 1

    def __call__(self) -> tuple[int, int]:
        return self.number**2, os.getpid()


@dataclass(frozen=True)
class Counted:
    """How many of its like are at work while it is, and what memory they take together; in threads alone."""

    nbytes: int
    seconds: float = 0.01
    now: ClassVar[list[int]] = []
    lock: ClassVar[threading.Lock] = threading.Lock()

    def __call__(self) -> tuple[int, int]:
        with self.lock:
            self.now.append(self.nbytes)
            seen = len(self.now), sum(self.now)
        time.sleep(self.seconds)
        with self.lock:
            self.now.remove(self.nbytes)
        return seen


@dataclass(frozen=True)
class Fails:
    """Raises what is damaged, or a fault of ours."""

    ours: bool
    nbytes: int = 1

    def __call__(self) -> None:
        if self.ours:
            raise ZeroDivisionError("of ours")
        raise BadInput("tensor w holds NaN", where="model.safetensors", fix="Copy it again.")


@dataclass(frozen=True)
class Marks:
    """Leaves a file when it ends, after a while."""

    path: Path
    seconds: float
    nbytes: int = 1

    def __call__(self) -> None:
        time.sleep(self.seconds)
        self.path.touch()


@dataclass(frozen=True)
class Dies:
    """Ends its process in the middle the first `times` that it runs, as a machine that goes down would."""

    path: Path
    times: int
    nbytes: int = 1

    def __call__(self) -> str:
        tries = len(self.path.read_text()) if self.path.exists() else 0
        self.path.write_text("x" * (tries + 1))
        if tries < self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        return "alive"


@dataclass(frozen=True)
class Tells:
    """Writes the number of its process, so that it can be killed from outside, and waits for that the first time."""

    path: Path
    nbytes: int = 1

    def __call__(self) -> int:
        if not self.path.exists():
            beside = self.path.with_suffix(".new")
            beside.write_text(str(os.getpid()))
            beside.rename(self.path)
            time.sleep(60)
        return os.getpid()


@dataclass(frozen=True)
class Threads:
    """With how many threads torch computes in it."""

    nbytes: int = 1

    def __call__(self) -> int:
        import torch

        time.sleep(0.02)
        return torch.get_num_threads()
