"""Checksums of files by parts, so that what a run wrote need not be read again and what is damaged can be named."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mocomp.executors import Executor

STEP = 1 << 20
"""Bytes that are read at once."""
PART = 32 << 20
"""Bytes of a part of a file that nobody parted."""


@dataclass(frozen=True, order=True)
class Part:
    """`length` bytes from a byte `offset` on of a file of a directory, and their SHA-256 in hexadecimal."""

    file: str
    offset: int
    length: int
    sha256: str


def is_span(offset: Any, length: Any, size: int = (1 << 63) - 1) -> bool:
    """Whether what a file says are a place and a number of bytes in a file of `size`."""
    return type(offset) is int and type(length) is int and offset >= 0 and length >= 0 and offset + length <= size


@dataclass(frozen=True)
class Check:
    """A task of an executor: whether the bytes of a part are still those of its checksum."""

    directory: Path
    part: Part
    nbytes: int = STEP

    def __call__(self) -> bool:
        found = sha256_of(self.directory / self.part.file, self.part.offset, self.part.length)
        return found == self.part.sha256


def sha256_of(path: Path, offset: int, length: int) -> str | None:
    """The checksum of some bytes of a file; None where it has not got them. Raises OSError when they cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            file.seek(offset)
            while length:
                data = file.read(min(STEP, length))
                if not data:
                    return None
                digest.update(data)
                length -= len(data)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None
    return digest.hexdigest()


def intact(
    directory: Path, parts: Iterable[Part], executor: Executor, advance: Callable[[int], None] = lambda count: None
) -> Iterator[tuple[Part, bool]]:
    """Each part with whether its bytes are there; `advance` is told of each."""
    for check, same in executor.run(Check(directory, part) for part in parts):
        advance(check.part.length)
        yield check.part, same


def parts_of(directory: Path, file: str, known: Iterable[Part] = ()) -> list[Part]:
    """A whole file in parts: those `known`, and between them others that are read now. What is known is not believed where two
    of it overlap."""
    size = (directory / file).stat().st_size
    known = sorted(known)
    if any(a.offset + a.length > b.offset for a, b in pairwise(known)):
        known = []
    made: list[Part] = []
    reached = 0
    for part in known:
        made += [*_read(directory, file, reached, part.offset), part]
        reached = part.offset + part.length
    return [*made, *_read(directory, file, reached, size)]


def _read(directory: Path, file: str, start: int, stop: int) -> Iterator[Part]:
    for offset in range(start, stop, PART):
        length = min(PART, stop - offset)
        digest = sha256_of(directory / file, offset, length)
        if digest is None:
            raise OSError(f"{directory / file} became shorter while it was read")
        yield Part(file, offset, length, digest)
