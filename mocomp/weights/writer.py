"""Weights to disk, streamed from recipes: where each of them goes is known beforehand, so they are written in any order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mocomp.executors import Executor
from mocomp.executors.local import Local
from mocomp.weights.disk import File
from mocomp.weights.journal import Journal
from mocomp.weights.parts import complete, written
from mocomp.weights.recipes import Reader, Recipe

BUFFER = 4 << 20
"""Bytes of one piece: small enough to stay in the cache between reading, rearranging, writing and its checksum."""
ALIGNMENT = 64


@dataclass(frozen=True)
class Placed:
    """Where a tensor was written: offset and length in bytes, and the file if it is another than that of the others."""

    offset: int
    length: int
    file: str = ""


class Writer:
    """How weights come to disk: from recipes over what `read` reads, by an executor's workers, noted in a journal.

    `advance` is told the bytes of each part. Raises OSError when the disk is full.
    """

    def __init__(
        self,
        read: Reader,
        advance: Callable[[int], None] = lambda count: None,
        executor: Executor | None = None,
        journal: Journal | None = None,
        buffer: int = BUFFER,
    ):
        self.read, self.advance, self.buffer = read, advance, buffer
        self.executor, self.journal = executor or Local(), journal or Journal()

    def write(
        self, path: Path, weights: Mapping[str, Recipe], head: bytes = b"", alignment: int = ALIGNMENT
    ) -> dict[str, Placed]:
        """A file of `head` and all weights, one after the other, each at a multiple of `alignment` bytes, zeros between."""
        path = path.absolute()
        placed = laid_out(weights, len(head), alignment)
        with File(path) as file:
            file.truncate(max((p.offset + p.length for p in placed.values()), default=len(head)))
            file.write_at(0, head)
        parts = (
            part
            for name, recipe in weights.items()
            for part in written(recipe, self.read, path, placed[name].offset, self.buffer)
        )
        complete(parts, self.executor, self.journal, self.advance)
        return placed


def laid_out(weights: Mapping[str, Recipe], start: int, alignment: int) -> dict[str, Placed]:
    """Where each weight goes in a file whose first `start` bytes are taken."""
    placed = {}
    for name, recipe in weights.items():
        start += -start % alignment
        placed[name] = Placed(start, recipe.nbytes)
        start += recipe.nbytes
    return placed
