"""A disk that fails at one operation, in each way in which disks do."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from typing import Any

from mocomp.weights import disk

WAYS = {
    "pwrite": ("full", "short", "broken"),
    "truncate": ("full", "broken"),
    "sync": ("broken", "full"),
    "close": ("broken",),
    "open": ("full", "broken"),
    "rename": ("broken", "full"),
    "exchange": ("none", "broken"),
    "link": ("broken",),
    "make_directory": ("full", "broken"),
    "remove": ("broken",),
    "remove_directory": ("broken",),
}
"""How each call may fail: the disk is full, and stays so; it takes half of a write and then is full; it breaks once; it cannot
do that at all."""


class FailingDisk(disk.System):
    """Counts the calls, and has the one of number `at` fail in the way of that number among those that it can."""

    def __init__(self, at: int = -1, way: int = 0):
        self.at, self.way = at, way
        self.calls: list[str] = []
        self.failed = ""
        self._full = False
        self._lock = threading.Lock()

    def __getattribute__(self, name: str) -> Any:
        call = super().__getattribute__(name)
        return super().__getattribute__("_failing")(name, call) if name in WAYS else call

    def _failing(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def failing(*arguments: Any) -> Any:
            with self._lock:
                number = len(self.calls)
                self.calls.append(name)
                way = WAYS[name][self.way % len(WAYS[name])] if number == self.at else ""
                self.failed = f"{way} {name}" if way else self.failed
                full = self._full and name in ("pwrite", "make_directory")
            if full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self._fail(way, name, call, arguments) if way else call(*arguments)

        return failing

    def _fail(self, way: str, name: str, call: Callable[..., Any], arguments: tuple) -> Any:
        if way == "none":
            return False
        self._full = way in ("full", "short")
        if way == "short":
            handle, view, offset = arguments
            return call(handle, view[: max(len(view) // 2, 1)], offset)
        if name == "close":
            call(*arguments)
        code = errno.ENOSPC if way == "full" else errno.EIO
        raise OSError(code, os.strerror(code))
