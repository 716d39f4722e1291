"""What the user is told when the making of an output is cut short: whether something stays, and how to go on."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from mocomp.errors import BadInput, Interrupted, MocompError
from mocomp.weights.place import Place

OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
Passing = OSError | KeyboardInterrupt | MemoryError | MocompError
"""What may be otherwise another time; of our own errors those that are not lasting."""


def cause(error: BaseException) -> Passing | None:
    """What cut it short, where the same command may come further another time: the error, or the disk's behind it."""
    if isinstance(error, (OSError, KeyboardInterrupt, MemoryError)):
        return error
    if isinstance(error, MocompError) and not error.lasting:
        return error
    behind = error.__cause__
    return behind if isinstance(behind, OSError) and behind.errno in OF_THE_DISK else None


def explained(error: Passing, place: Place) -> BaseException:
    """The failure as one that the user can act on; itself where it is not about this place."""
    kept = os.path.exists(place.partial)  # noqa: PTH110 - a name that is too long exists nowhere
    names = f"{place.partial.name} and {place.journal.name}"
    again = f", and run the same command to go on; or remove {names}" if kept else ""
    left = "what is written stays" if kept else "nothing was left behind"
    where = str(place.asked)
    if isinstance(error, KeyboardInterrupt):
        if not kept:
            return error
        return Interrupted(f"interrupted; {left}", where=where, fix=f"Run the same command to go on, or remove {names}.")
    if isinstance(error, MemoryError):
        return error
    if isinstance(error, MocompError):
        fix = f"{error.fix} Then run the same command to go on, or remove {names}."
        return type(error)(f"{error.what}; {left}", where=error.where, fix=fix) if kept else error
    return _of_the_disk(error, place, left, again)


def _of_the_disk(error: OSError, place: Place, left: str, again: str) -> BaseException:
    where = str(place.asked)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(next(p for p in place.target.parents if p.exists())).free
        fix = "Free some space" + (again or ", or choose a directory on another disk") + "."
        return BadInput(f"the disk is full ({free / 1e9:.1f} GB free); {left}", where=where, fix=fix)
    if error.errno == errno.EFBIG:
        fix = "Raise the limit (ulimit -f)" + (again or ", or choose another disk") + "."
        return BadInput("a file of it is larger than this system allows", where=where, fix=fix)
    if error.errno == errno.EIO:
        return BadInput(
            f"a disk reports an error; {left}", where=where, fix="See what the system's log says of it" + again + "."
        )
    return _of_the_place(error, place) or error


def _of_the_place(error: OSError, place: Place) -> BadInput | None:
    """For failures of making or naming files; those about files elsewhere are faults of their own."""
    named = Path(error.filename) if isinstance(error.filename, (str, Path)) else None
    if named is None or not any(named.is_relative_to(own) or own.is_relative_to(named) for own in place.own):
        return None
    why = os.strerror(error.errno or 0)
    return BadInput(f"may not be written: {why}", where=str(place.asked), fix="Choose another -o DIR.")
