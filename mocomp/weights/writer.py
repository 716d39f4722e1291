"""Weights to disk, streamed from recipes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from mocomp.executors import Executor
from mocomp.executors.local import Local
from mocomp.weights.journal import Journal
from mocomp.weights.recipes import Reader, Recipe

BUFFER = 4 << 20
"""Bytes of one piece: small enough to stay in the cache between reading, rearranging and writing."""
ALIGNMENT = 64


@dataclass(frozen=True)
class Placed:
    """Where a tensor was written: offset and length in bytes."""

    offset: int
    length: int


class Writer:
    """How weights come to disk: from recipes over what `read` reads, by an executor's workers, noted in a journal.

    `advance` is told the bytes of each piece. Raises OSError when the disk is full.
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
        """A file of `head` and all weights, one after the other, each at a multiple of `alignment` bytes."""
        placed: dict[str, Placed] = {}
        with one_thread(), path.open("wb") as file:
            file.write(head)
            for name, recipe in weights.items():
                file.write(b"\0" * (-file.tell() % alignment))
                offset = file.tell()
                for piece in recipe.chunks(self.read, self.buffer):
                    data = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
                    file.write(data.data)
                    self.advance(data.nbytes)
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
