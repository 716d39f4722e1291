"""Files of a directory that somebody else made: each has to lie in it, and to be a file.

A name with `..`, an absolute path or a link would let a checkpoint have any file of this machine read, and copied into what
is made of it; to open a pipe would wait for ever.
"""

from __future__ import annotations

import os
from pathlib import Path

from mocomp.errors import BadInput
from mocomp.terminal import printable

COPY = "If you trust it, copy the file itself into the directory."


def own_file(directory: Path, name: str) -> Path:
    """The regular file `name` of a directory, or of a snapshot in the hub's cache, whose files are links to blobs beside it.

    Raises BadInput for one that is not there, lies elsewhere, is a directory or a pipe, or may not be read.
    """
    path = directory / name
    refuse_outside(directory, name)
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # absent, a link to nothing or to itself
        raise BadInput("it is not there, or is a link to nothing", where=str(path), fix="Copy or download the file.") from error
    if not real.is_file():
        raise BadInput("it is not a regular file", where=str(path), fix="Copy or download the file.")
    if not os.access(real, os.R_OK):
        raise BadInput("it may not be read", where=str(path), fix="Check its permissions.")
    return path


def refuse_outside(directory: Path, name: str) -> None:
    """Raises BadInput for a name that leads out of a directory, by itself or by a link, whether a file is there or not."""
    refuse_name(directory, name)
    path = directory / name
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise BadInput("it is a link to itself, or no name of a file", where=str(path)[:300]) from error
    if not any(real.is_relative_to(home) for home in _homes(directory)):
        raise BadInput(f"it is a link to a file outside its directory: {real}", where=str(path), fix=COPY)


def refuse_name(directory: Path, name: str) -> None:
    """Raises BadInput for a name that leads out of a directory by itself, or that cannot be printed."""
    parts = Path(name).parts
    if not parts or ".." in parts or Path(name).is_absolute() or not name.isprintable():
        raise BadInput(f"it names a file outside its directory: {printable(name)}", where=str(directory), fix=COPY)


def _homes(directory: Path) -> list[Path]:
    real = directory.resolve()
    return [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]
