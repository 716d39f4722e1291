"""The names beside an output while it is made, who holds them, and how what is made gets its place."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mocomp.errors import BadInput
from mocomp.weights import disk
from mocomp.weights.journal import HEAD, read_journal


class Place:
    """Where an output goes, and three names beside it: what is made so far, its journal, and what it replaces while the two
    change places."""

    def __init__(self, target: Path):
        self.asked, self.target = target, target.absolute()
        self.partial, self.journal, self.replaced = (
            self.target.with_name(f".{self.target.name}.{word}") for word in ("partial", "journal", "replaced")
        )

    @property
    def own(self) -> tuple[Path, ...]:
        """Every name that this output may have."""
        return self.target, self.partial, self.journal, self.replaced

    @contextmanager
    def held(self) -> Iterator[disk.File]:
        """The journal, which no other process can hold until the block ends; one that died holds nothing.

        Directories that have to be made for it go away with it. Raises BadInput where another process has it.
        """
        absent = [parent for parent in self.target.parents if not parent.exists()]
        try:
            disk.make_directory(self.target.parent)
            log = self._locked()
            try:
                yield log
            finally:
                with suppress(OSError):
                    log.close()
        finally:
            for parent in absent:
                with suppress(OSError):  # it holds something
                    disk.remove_directory(parent)

    def mend(self) -> None:
        """Put in order what a process left that died while the new output changed places with the old one. Raises BadInput
        where something else has one of these names."""
        self._refuse_foreign()
        if not (self.journal.exists() or self.replaced.exists()):
            return
        with self.held():
            if self.replaced.exists() and not self.target.exists():
                disk.rename(self.replaced, self.target)
            disk.remove_tree(self.replaced)
            finished = read_journal(self.journal).finished
            in_place = self.target.exists() and self.target.stat().st_ino == finished
            if in_place or not self.partial.exists():
                self.clear()

    def fill(self, about_to: Callable[[int], None]) -> None:
        """Put what is made into its place; `about_to` is told its number on the disk before."""
        disk.sync_tree(self.partial)
        about_to(self.partial.stat().st_ino)
        if not self.target.exists():
            disk.rename(self.partial, self.target)
        elif not disk.exchange(self.partial, self.target):
            disk.rename(self.target, self.replaced)
            try:
                disk.rename(self.partial, self.target)
            except BaseException:
                if not self.target.exists():
                    disk.rename(self.replaced, self.target)
                raise

    def clear(self) -> None:
        """Remove what is beside the target, the journal last, and only when the rest is gone: without it that is nobody's."""
        disk.remove_tree(self.replaced)
        disk.remove_tree(self.partial)
        if not (self.replaced.exists() or self.partial.exists()):
            with suppress(OSError):
                disk.remove(self.journal, absent=True)

    def _refuse_foreign(self) -> None:
        """Raises BadInput for links, and for what stands beside the target without a journal of ours: it is somebody else's."""
        for path in (self.partial, self.journal, self.replaced):
            if path.is_symlink():
                raise self._foreign(path, "is a link")
        if self.journal.exists() and not (self.journal.is_file() and _begins_as_ours(self.journal)):
            raise self._foreign(self.journal, "is no journal of mocomp")
        for path in (self.partial, self.replaced):
            # asked twice, as another process may begin in between
            if not self._begun() and _holds_something(path) and not self._begun():
                raise self._foreign(path, f"has no journal ({self.journal.name}), so it may be anybody's")

    def _foreign(self, path: Path, why: str) -> BadInput:
        fix = f"Remove {path.name} if nobody needs it, or choose another -o DIR."
        return BadInput(f"{path.name} beside it {why}", where=str(self.asked), fix=fix)

    def _begun(self) -> bool:
        return read_journal(self.journal).end > 0

    def _locked(self) -> disk.File:
        while True:
            log = disk.File(self.journal, follow=False)
            try:
                fcntl.flock(log.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self.journal.exists() and os.path.samestat(self.journal.stat(), os.fstat(log.handle)):
                    return log
            except BlockingIOError:
                log.close()
                pid = read_journal(self.journal).pid
                raise BadInput(
                    f"another process is making it{f' ({pid})' if pid else ''}",
                    where=str(self.asked),
                    fix="Let that one end, or choose another -o DIR.",
                ) from None
            log.close()  # it belonged to one who was just done, and removed it


def _begins_as_ours(journal: Path) -> bool:
    """Whether a file begins as journals do, or would if its first line were not cut short."""
    with journal.open("rb") as file:
        start = file.read(len(HEAD))
    return start == HEAD[: len(start)]


def _holds_something(path: Path) -> bool:
    return path.exists() and (not path.is_dir() or any(path.iterdir()))
