"""A directory that exists only when it is whole, and that is gone on with after what cut its making short.

It is made beside its place and renamed when all of it is on disk. Two names beside it, which are gone when it is done: what
is made so far (`.NAME.partial`) and the journal of that (`.NAME.journal`). See docs/decisions/0020.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mocomp import terminal
from mocomp.errors import BadInput
from mocomp.executors import Executor, open_executor
from mocomp.resources import Resources
from mocomp.weights import disk
from mocomp.weights.checksums import Part, intact
from mocomp.weights.cut_short import cause, explained
from mocomp.weights.identity import Command, difference
from mocomp.weights.journal import Journal
from mocomp.weights.place import Place
from mocomp.weights.recipes import Reader
from mocomp.weights.record import seal, stranger_in
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
def new_directory(
    target: Path, force: bool = False, mark: str = "", resources: Resources | None = None, command: Command | None = None
) -> Iterator[Output]:
    """A directory to fill beside `target`, renamed into place when the block ends well, with its checksums in the file `mark`.

    Where memory or the disk ends, a cluster fails, or the user stops it, the parts that are written stay, and `command` goes
    on with them; any other failure leaves nothing. Raises BadInput when `target` exists (unless `force`, then it is replaced
    at the end, if it is empty or holds `mark`, which shows it to be ours, and for a `command` no file of anybody else), when
    what `command` reads lies in it, when another process makes it, when parts of another command are there (unless `force`),
    when it cannot be written and when the disk is full; Interrupted where the user stops it and parts stay.
    """
    place = Place(target)
    executor = open_executor(resources or Resources())
    try:
        _refuse_reading_it(place, command)
        place.mend()
        _refuse_existing(target, force, mark, command)
        identity = command.identity() if command is not None else None
        executor.start()
        with place.held() as log:
            journal = Journal(place.partial, log)
            known = _belonging(journal, identity, place, force)
            journal.keeps = bool(known)
            with _removed_unless_kept(place, journal):
                journal.begin(identity)
                _take_up(journal, known, executor)
                yield Output(place.partial, executor, journal)
                _refuse_existing(target, force, mark, command)
                journal.flush()
                if (place.partial / mark).is_file():
                    seal(place.partial, mark, journal.parts)
                place.fill(journal.finish)
    except BaseException as error:
        if (failure := cause(error)) is None:
            raise
        raise explained(failure, place) from error
    finally:
        executor.close()


def _refuse_reading_it(place: Place, command: Command | None) -> None:
    """Raises BadInput where what a command reads lies where it writes: it would remove that."""
    for path in command.places() if command is not None else []:
        if any(path.resolve().is_relative_to(own.resolve()) for own in place.own):
            raise BadInput(f"{path} is read, and lies in it", where=str(place.asked), fix="Choose another -o DIR.")


def _refuse_existing(target: Path, force: bool, mark: str, command: Command | None) -> None:
    if target.exists() and not force:
        raise BadInput("it exists already", where=str(target), fix="Choose another -o DIR, or pass --force to replace it.")
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BadInput("it is not a directory of its own", where=str(target), fix="Choose another -o DIR.")
    if target.is_dir() and not (target / mark).is_file() and any(target.iterdir()):
        raise BadInput(
            "it holds files that mocomp did not write, so --force does not replace it",
            where=str(target),
            fix="Choose another -o DIR, or remove it yourself.",
        )
    if command is not None and (target / mark).is_file() and (stranger := stranger_in(target, mark)) is not None:
        raise BadInput(
            f"it holds {stranger}, which mocomp did not write, so --force does not replace it",
            where=str(target),
            fix="Choose another -o DIR, or move that file elsewhere.",
        )


def _belonging(journal: Journal, identity: dict | None, place: Place, force: bool) -> list[Part]:
    """The parts that are this command's own. Raises BadInput for those of another one, unless they are to go."""
    if not journal.told:
        return []
    before = journal.belongs
    differs = difference(before or {}, identity) if identity is not None else "another command was cut short there"
    if not differs:
        return journal.told
    if not force and before is not None:
        raise BadInput(
            differs,
            where=str(place.target),
            fix="Run that command again to go on with it, choose another -o DIR, or pass --force to discard what it wrote.",
        )
    return []


def _take_up(journal: Journal, known: list[Part], executor: Executor) -> None:
    """Keep what of an earlier run is as its journal says, and remove the rest. Until all of it is looked at, all is worth
    keeping."""
    if known:
        alone = {file for file in {part.file for part in known} if _is_alone(journal.directory, file)}
        known = [part for part in known if part.file in alone]
        with terminal.progress("checking what is there", sum(part.length for part in known)) as advance:
            for part, same in intact(journal.directory, known, executor, advance):
                if same:
                    journal.keep(part)
    journal.keeps = bool(journal.parts)
    kept = {journal.directory / part.file for part in journal.parts}
    for folder, folders, names in os.walk(journal.directory, topdown=False):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for path in [Path(folder) / name for name in (*names, *links)]:
            if path not in kept:
                disk.remove(path)
        if Path(folder) != journal.directory:
            with suppress(OSError):  # it holds something that is kept
                disk.remove_directory(Path(folder))
    disk.make_directory(journal.directory)


def _is_alone(directory: Path, file: str) -> bool:
    """Whether a file is here and nowhere else: neither a link nor behind one, and without a second name."""
    path = directory / file
    return path.is_file() and path.resolve() == directory.resolve() / file and path.stat().st_nlink == 1


@contextmanager
def _removed_unless_kept(place: Place, journal: Journal) -> Iterator[None]:
    keeps = False
    try:
        yield
    except BaseException as error:
        if cause(error) is not None:
            with suppress(OSError):
                journal.flush()
            keeps = journal.keeps
        raise
    finally:
        if not keeps:
            place.clear()
