"""Weights to disk: streamed from recipes, and a directory that exists only when it is whole."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mocomp.errors import BadInput
from mocomp.weights.recipes import Reader, Recipe

BUFFER = 4 << 20
"""Bytes of one piece: small enough to stay in the cache between reading, rearranging and writing."""
ALIGNMENT = 64


@dataclass(frozen=True)
class Placed:
    """Where a tensor was written: offset and length in bytes."""

    offset: int
    length: int


def write(
    path: Path, weights: dict[str, Recipe], read: Reader, progress: Callable[[int], None], buffer: int = BUFFER
) -> dict[str, Placed]:
    """All weights one after the other into one file, at most `buffer` bytes (and one row) of them in memory.

    `progress` is told the bytes of each piece. Raises BadInput when the disk is full.
    """
    placed: dict[str, Placed] = {}
    with one_thread(), path.open("wb") as file:
        for name, recipe in weights.items():
            file.write(b"\0" * (-file.tell() % ALIGNMENT))
            offset = file.tell()
            for piece in recipe.chunks(read, buffer):
                data = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
                file.write(data.data)
                progress(data.nbytes)
            placed[name] = Placed(offset, file.tell() - offset)
    return placed


@contextmanager
def one_thread() -> Iterator[None]:
    """Copies of this size are bound by memory; more threads would only spin."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def new_directory(target: Path, force: bool = False, mark: str = "") -> Iterator[Path]:
    """A directory to fill beside `target`, renamed into place when the block ends well and removed when it does not.

    Raises BadInput when `target` exists (unless `force`, then it is replaced at the end, if it is empty or holds the
    file `mark` that shows it to be ours), when it cannot be written and when the disk is full.
    """
    _refuse_existing(target, force, mark)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BadInput("it is not a directory of its own", where=str(target), fix="Choose another -o DIR.")
    target = target.absolute()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    absent = [parent for parent in target.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        yield partial
        _refuse_existing(target, force, mark)
        _move_into_place(partial, target)
    except OSError as error:
        raise _explained(error, partial, target) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        for parent in absent:  # those that were made for nothing; one that holds something refuses
            with suppress(OSError):
                parent.rmdir()


def _refuse_existing(target: Path, force: bool, mark: str) -> None:
    if target.exists() and not force:
        raise BadInput("it exists already", where=str(target), fix="Choose another -o DIR, or pass --force to replace it.")
    if target.is_dir() and not (target / mark).is_file() and any(target.iterdir()):
        raise BadInput(
            "it holds files that mocomp did not write, so --force does not replace it",
            where=str(target),
            fix="Choose another -o DIR, or remove it yourself.",
        )


def _move_into_place(partial: Path, target: Path) -> None:
    """Rename `partial` to `target`; what stood there goes away after that, and comes back when the renaming fails."""
    replaced = target.with_name(f".{target.name}.{secrets.token_hex(4)}.replaced")
    try:
        if target.exists():
            target.rename(replaced)
        partial.rename(target)
    except BaseException:
        if replaced.exists() and not target.exists():
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


def _explained(error: OSError, partial: Path, target: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in target.parents if p.exists())).free
        return BadInput(
            f"the disk is full ({free / 1e9:.1f} GB free); nothing was left behind",
            where=str(target),
            fix="Free some space, or choose a directory on another disk.",
        )
    if error.errno == errno.EFBIG:
        return BadInput(
            "a file of it is larger than this system allows",
            where=str(target),
            fix="Raise the limit (ulimit -f), or choose another disk.",
        )
    place = Path(error.filename) if isinstance(error.filename, (str, Path)) else None
    if place is not None and (partial.is_relative_to(place) or place.is_relative_to(partial)):
        return BadInput(f"may not be written: {os.strerror(error.errno or 0)}", where=str(target), fix="Choose another -o DIR.")
    return error
