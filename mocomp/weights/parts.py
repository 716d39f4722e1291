"""Parts: the work on weights cut into tasks, each of which writes some bytes at their place and tells their checksum.

How weights are cut depends on them alone, not on who does the work or with how much memory: checksums are of parts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from mocomp.executors import Executor, Task
from mocomp.weights.disk import File
from mocomp.weights.journal import Journal
from mocomp.weights.recipes import Reader, Recipe

PART = 32 << 20
"""Bytes of a part, where one row is not larger and rows can be made apart."""


@dataclass(frozen=True)
class Span:
    """`length` bytes of a file from `offset` on."""

    path: Path
    offset: int
    length: int


class Part(Task, Protocol):
    """A task that fills `spans`, and gives the SHA-256 of each; `amount` is what `advance` is told of it, in bytes."""

    @property
    def spans(self) -> tuple[Span, ...]: ...

    @property
    def amount(self) -> int: ...

    def __call__(self) -> tuple[str, ...]: ...


AnyPart = TypeVar("AnyPart", bound=Part)


@dataclass(frozen=True, eq=False)
class Written:
    """Rows start..stop of a recipe, made in pieces of `buffer` bytes and written to their place."""

    recipe: Recipe
    read: Reader
    start: int
    stop: int
    span: Span
    buffer: int
    nbytes: int

    @property
    def spans(self) -> tuple[Span, ...]:
        return (self.span,)

    @property
    def amount(self) -> int:
        return self.span.length

    def __call__(self) -> tuple[str, ...]:
        with Place(self.span) as place:
            for piece in self.recipe.chunks(self.read, self.buffer, self.start, self.stop):
                place.write(piece)
        return (place.checksum,)


class Place:
    """A span while it is filled, from its begin on. It must be full when the block ends."""

    def __init__(self, span: Span):
        self.span, self._offset, self._digest = span, span.offset, hashlib.sha256()

    def __enter__(self) -> Place:
        self._file = File(self.span.path)
        return self

    def __exit__(self, kind: type | None, *rest: Any) -> None:
        self._file.close()
        assert kind is not None or self._offset == self.span.offset + self.span.length, f"{self.span} was not filled"

    def write(self, rows: torch.Tensor) -> None:
        """The next rows of what belongs there."""
        data = bytes_of(rows)
        self._offset = self._file.write_at(self._offset, data)
        self._digest.update(data)

    @property
    def checksum(self) -> str:
        """SHA-256, in hexadecimal."""
        return self._digest.hexdigest()


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, as they lie in memory where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def written(recipe: Recipe, read: Reader, path: Path, offset: int, buffer: int) -> Iterator[Written]:
    """A weight in parts, to be written from `offset` of a file on."""
    for start, stop in recipe.ranges(PART):
        length = recipe.nbytes * (stop - start) // recipe.shape[0] if recipe.shape and recipe.nbytes else recipe.nbytes
        memory = max(recipe.cost(*rows) for rows in recipe.ranges(buffer, start, stop))
        yield Written(recipe, read, start, stop, Span(path, offset, length), buffer, memory)
        offset += length


def complete(
    parts: Iterable[AnyPart], executor: Executor, journal: Journal, advance: Callable[[int], None] = lambda count: None
) -> None:
    """All parts on disk: those that the journal knows already are left as they are, the others are made, and told to it."""

    def unknown() -> Iterator[AnyPart]:
        for part in parts:
            if all(journal.known(*of(journal, span)) is not None for span in part.spans):
                advance(part.amount)
            else:
                yield part

    for part, checksums in executor.run(unknown()):
        for span, checksum in zip(part.spans, checksums, strict=True):
            journal.done(*of(journal, span), checksum)
        advance(part.amount)


def of(journal: Journal, span: Span) -> tuple[str, int, int]:
    """A span as a journal knows it: a path in its directory, offset, length."""
    home = journal.directory.absolute()
    path = span.path.absolute()
    return str(path.relative_to(home) if path.is_relative_to(home) else path), span.offset, span.length
