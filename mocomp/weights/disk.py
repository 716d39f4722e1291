"""All that changes the disk, so that there is one place where a full or failing disk can be played.

Nothing here is on disk for certain before `sync`: a write is the system's promise, and the file system may keep it late.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path
from types import TracebackType

STEP = 1 << 20
"""Bytes that are copied at once."""
HERE, EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux's rename(2)."""

Bytes = bytes | bytearray | memoryview


def _exchange(first: Path, second: Path) -> bool:
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    return call is not None and call(HERE, os.fsencode(first), HERE, os.fsencode(second), EXCHANGE) == 0


class System:
    """The calls of the operating system that change a disk; a test puts in its place one that fails."""

    open = staticmethod(os.open)
    pwrite = staticmethod(os.pwrite)
    truncate = staticmethod(os.ftruncate)
    sync = staticmethod(getattr(os, "fdatasync", os.fsync))
    close = staticmethod(os.close)
    rename = staticmethod(os.replace)
    exchange = staticmethod(_exchange)
    link = staticmethod(os.link)
    make_directory = staticmethod(os.mkdir)
    remove = staticmethod(os.unlink)
    remove_directory = staticmethod(os.rmdir)


system = System()


class File:
    """A file that is written at any offset, made where it is not there, and kept as it is where it is.

    Every call raises OSError when the disk refuses; `close` too, since some file systems tell only then.
    """

    def __init__(self, path: Path, follow: bool = True):
        """Unless `follow`, a path that is a symbolic link is an error."""
        self.path = path
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        self.handle = system.open(path, flags, 0o666)

    def __enter__(self) -> File:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def write_at(self, offset: int, data: Bytes) -> int:
        """All of `data` at a byte offset; returns where it ends. The system may take it in several portions."""
        view = memoryview(data).cast("B")
        while view:
            count = system.pwrite(self.handle, view, offset)
            view, offset = view[count:], offset + count
        return offset

    def truncate(self, size: int) -> None:
        """Make it `size` bytes long; what is added are zeros."""
        system.truncate(self.handle, size)

    def sync(self) -> None:
        """Wait until all of it is on disk."""
        system.sync(self.handle)

    def close(self) -> None:
        """Give the handle back; a second time does nothing."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            system.close(handle)


def write_bytes(path: Path, data: Bytes) -> None:
    """A file of these bytes and no others."""
    _let_go(path)
    with File(path) as file:
        file.truncate(0)
        file.write_at(0, data)


def write_text(path: Path, text: str) -> None:
    """A file of this text in UTF-8."""
    write_bytes(path, text.encode())


def replace_bytes(path: Path, data: Bytes) -> None:
    """The same for a file that others may read: the old one stays, whole, until the new one is on disk."""
    beside = path.with_name(f".{path.name}.new")
    try:
        with File(beside) as file:
            file.truncate(0)
            file.write_at(0, data)
            file.sync()
        rename(beside, path)
    except OSError:
        remove(beside, absent=True)
        raise


def replace_text(path: Path, text: str) -> None:
    """The same with text in UTF-8."""
    replace_bytes(path, text.encode())


def copy(source: Path, target: Path) -> None:
    """A file with the content of another."""
    _let_go(target)
    with source.open("rb") as read, File(target) as file:
        file.truncate(0)
        offset = 0
        while data := read.read(STEP):
            offset = file.write_at(offset, data)


def _let_go(path: Path) -> None:
    """Give up a name of a file that has others: what is written goes to this name alone."""
    if path.is_file() and path.stat().st_nlink > 1:
        remove(path)


def link(source: Path, target: Path) -> None:
    """A second name of a file."""
    system.link(source, target)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name of a file where the disk can do that, else a copy."""
    try:
        system.link(source, target)
    except OSError:
        copy(source, target)


def make_directory(path: Path) -> None:
    """A directory and those above it; one that is there is left as it is."""
    if not path.is_dir():
        make_directory(path.parent)
        system.make_directory(path)


def rename(source: Path, target: Path) -> None:
    """Give a file, or a directory, the place of another; on disk when this returns."""
    system.rename(source, target)
    sync_file(target.parent)


def exchange(first: Path, second: Path) -> bool:
    """Let two directories change places in one step; False where the system or the disk cannot do that."""
    done = system.exchange(first, second)
    if done:
        sync_file(second.parent)
    return done


def remove(path: Path, absent: bool = False) -> None:
    """Remove a file, one that is `absent` too if that is said."""
    try:
        system.remove(path)
    except FileNotFoundError:
        if not absent:
            raise


def remove_directory(path: Path) -> None:
    """Remove a directory that is empty."""
    system.remove_directory(path)


def remove_tree(path: Path) -> None:
    """Remove a directory and all in it, as far as that goes."""
    shutil.rmtree(path, ignore_errors=True)


def sync_file(path: Path) -> None:
    """Wait until all of a file, or the names in a directory, is on disk, whoever wrote it."""
    handle = system.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        system.sync(handle)
    finally:
        system.close(handle)


def sync_tree(path: Path) -> None:
    """Wait until a directory and all in it is on disk."""
    for place, _, names in os.walk(path):
        for name in names:
            sync_file(Path(place) / name)
        sync_file(Path(place))
