"""What a command may use of the machines it runs on. None of it changes a byte of what is made."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mocomp.errors import Usage
from mocomp.settings import Options, not_negative, size_in_bytes

UNSAID = "1GB"
"""The memory where the user says none; said, it also decides whether a proof is made in parts."""


@dataclass(frozen=True)
class Resources(Options):
    """`memory` is what may be held of weights besides the largest tensor, `UNSAID` where nothing is said; `workers` run at
    once, 0 for as many as there are cores; `executor` is who runs them, at `address` where that is a cluster."""

    memory: str = ""
    workers: int = 0
    executor: str = "local"
    address: str = ""

    def __post_init__(self) -> None:
        not_negative("workers", self.workers)
        self.nbytes()
        if self.address and self.executor == "local":
            raise Usage("--address without --executor ray", fix="Say both, or neither: local work is on this machine.")

    def nbytes(self) -> int:
        """The memory in bytes."""
        return size_in_bytes(self.memory or UNSAID, "memory")

    def count(self) -> int:
        """How many workers that is here: the cores that this process may run on."""
        return self.workers or len(os.sched_getaffinity(0))
