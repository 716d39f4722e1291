"""A directory that exists only when it is whole."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mocomp.errors import BadInput
from mocomp.executors import Executor, open_executor
from mocomp.resources import Resources
from mocomp.weights.journal import Journal
from mocomp.weights.recipes import Reader
from mocomp.weights.writer import Writer


@dataclass(frozen=True)
class Output:
    """A directory that is being filled, and the journal of what of it is done."""

    path: Path
    executor: Executor
    journal: Journal = field(default_factory=Journal)

    def writer(self, read: Reader, advance: Callable[[int], None] = lambda count: None) -> Writer:
        """What writes weights into it."""
        return Writer(read, advance, self.executor, self.journal)


@contextmanager
def new_directory(target: Path, force: bool = False, mark: str = "", resources: Resources | None = None) -> Iterator[Output]:
    """A directory to fill beside `target`, renamed into place when the block ends well and removed when it does not.

    Raises BadInput when `target` exists (unless `force`, then it is replaced at the end, if it is empty or holds the
    file `mark` that shows it to be ours), when it cannot be written and when the disk is full.
    """
    _refuse_existing(target, force, mark)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BadInput("it is not a directory of its own", where=str(target), fix="Choose another -o DIR.")
    target = target.absolute()
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    executor = open_executor(resources or Resources())
    absent = [parent for parent in target.parents if not parent.exists()]
    try:
        partial.mkdir(parents=True)
        yield Output(partial, executor)
        _refuse_existing(target, force, mark)
        _move_into_place(partial, target)
    except OSError as error:
        raise _explained(error, partial, target) from error
    finally:
        executor.close()
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
