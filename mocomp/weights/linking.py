"""Weights that stay in the checkpoint: what an artifact would copy as it is, it reads from a second name of the file.

A second name (a hard link) lies in the artifact's own directory, so nothing there leads out of it, and no copy is made. What is
read is known by its checksum: a checkpoint that changes afterwards is told, and not run.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from mocomp.errors import BadInput
from mocomp.weights import disk
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.checksums import is_span, sha256_of
from mocomp.weights.json_files import read_object
from mocomp.weights.parts import bytes_of
from mocomp.weights.recipes import Concat, Recipe, Reshape, Slice, Stack, Tensor
from mocomp.weights.writer import ALIGNMENT, Placed, Writer

FOLDER, RECORD = "linked", "links.json"
"""The folder of links, which have the names of their shards, and what is known of them, which is kept outside of it."""
FIX = "Convert again, without --link-weights if the checkpoint is to change."


@dataclass(frozen=True)
class Span:
    """Bytes of a file of a checkpoint, one after the other."""

    file: Path
    offset: int
    length: int


@dataclass
class LinkedFile:
    """A file with a second name in an artifact: where the first one was, its size and the time of its last change in
    nanoseconds, and each weight that is read from it as [offset, bytes, SHA-256]."""

    source: str
    bytes: int
    changed: int
    weights: dict[str, tuple[int, int, str]] = field(default_factory=dict)


class LinkingWriter(Writer):
    """A writer that links what stands in `checkpoint` as it is to be written, and writes the rest."""

    def __init__(self, writer: Writer, checkpoint: Checkpoint):
        super().__init__(writer.read, writer.advance, writer.executor, writer.journal, writer.buffer)
        self.checkpoint = checkpoint
        self.linked = 0
        """Bytes that were not written."""

    def write(
        self, path: Path, weights: Mapping[str, Recipe], head: bytes = b"", alignment: int = ALIGNMENT
    ) -> dict[str, Placed]:
        """As a `Writer` does; a weight that is linked is placed in a file of its own."""
        found = {name: span for name, recipe in weights.items() if (span := span_of(recipe, self.checkpoint)) is not None}
        rest = {name: recipe for name, recipe in weights.items() if name not in found}
        return super().write(path, rest, head, alignment) | self._link(path.parent, found, weights)

    def _link(self, directory: Path, found: dict[str, Span], weights: Mapping[str, Recipe]) -> dict[str, Placed]:
        files: dict[str, LinkedFile] = {}
        for name, span in found.items():
            if span.file.name not in files:
                files[span.file.name] = _link_file(span.file, directory)
            files[span.file.name].weights[name] = (span.offset, span.length, self._checksum(weights[name]))
            self.linked += span.length
        if files:
            text = json.dumps({name: asdict(file) for name, file in files.items()}, indent=1)
            disk.write_text(directory / RECORD, text + "\n")
        return {name: Placed(span.offset, span.length, f"{FOLDER}/{span.file.name}") for name, span in found.items()}

    def _checksum(self, recipe: Recipe) -> str:
        """That of a weight, read as one that is written is: what is no finite number is refused."""
        digest = hashlib.sha256()
        for piece in recipe.chunks(self.read, self.buffer):
            digest.update(bytes_of(piece))
            self.advance(piece.nbytes)
        return digest.hexdigest()


def span_of(recipe: Recipe, checkpoint: Checkpoint) -> Span | None:
    """Where all of a recipe stands in a checkpoint, in its own type and order; None where it has to be made."""
    if math.prod(recipe.shape) == 0:
        return None
    match recipe:
        case Tensor() if recipe.name in checkpoint.entries:
            entry = checkpoint.entries[recipe.name]
            return Span(entry.file, entry.offset, recipe.nbytes) if entry.dtype == recipe.dtype else None
        case Reshape():
            return span_of(recipe.source, checkpoint)
        case Slice(dim=0, step=1) if (whole := span_of(recipe.source, checkpoint)) is not None:
            row = recipe.nbytes // recipe.shape[0]
            return Span(whole.file, whole.offset + recipe.start * row, recipe.nbytes)
        case Concat(dim=0) | Stack(dim=0):
            return _joined([span_of(part, checkpoint) for part in recipe.parts])
    return None


def _joined(spans: list[Span | None]) -> Span | None:
    """Parts that stand one after the other in one file, as one."""
    first, end = spans[0], 0
    for i, span in enumerate(spans):
        if span is None or first is None or (i and (span.file, span.offset) != (first.file, end)):
            return None
        end = span.offset + span.length
    return Span(first.file, first.offset, end - first.offset) if first is not None else None


def _link_file(file: Path, directory: Path) -> LinkedFile:
    """Give a file a second name in an artifact. Raises BadInput where the disk cannot, as between two disks."""
    real = file.resolve()
    disk.make_directory(directory / FOLDER)
    try:
        disk.link(real, directory / FOLDER / file.name)
    except OSError as error:
        raise BadInput(
            f"--link-weights: no second name of {file.name} can be made where the output is: {error.strerror}",
            where=str(file),
            fix="Choose an -o DIR on the checkpoint's own disk, with files that are yours; or leave out --link-weights.",
        ) from error
    stat = real.stat()
    return LinkedFile(str(real), stat.st_size, stat.st_mtime_ns)


def links_of(directory: Path) -> dict[str, LinkedFile]:
    """The files that an artifact reads in place, by name; none for one that was made without. Raises BadInput if damaged."""
    path = directory / RECORD
    if not os.path.lexists(path):
        return {}
    try:
        return {name: _linked(said) for name, said in read_object(path).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput("not a record of linked files", where=str(path), fix="Convert again.") from error


def _linked(said: dict[str, Any]) -> LinkedFile:
    """What a record says of a file. Raises KeyError, TypeError or ValueError where it cannot be meant that way."""
    weights = {name: _linked_weight(said["bytes"], *about) for name, about in dict(said["weights"]).items()}
    if not isinstance(said["source"], str) or type(said["changed"]) is not int or len(said) != len(fields(LinkedFile)):
        raise TypeError("a file is not described as such")
    return LinkedFile(said["source"], said["bytes"], said["changed"], weights)


def _linked_weight(size: int, offset: int, length: int, checksum: str) -> tuple[int, int, str]:
    if type(size) is not int or not is_span(offset, length, size) or not isinstance(checksum, str):
        raise ValueError("a weight does not lie in its file")
    return offset, length, checksum


def notes_of_links(directory: Path, asked: bool) -> list[str]:
    """What the user should know who `asked` for links."""
    linked = links_of(directory)
    if not linked:
        return ["--link-weights: no weight stands in the checkpoint as the artifact has it, so none is linked"] * asked
    nbytes = sum(length for file in linked.values() for _, length, _ in file.weights.values())
    return [
        f"--link-weights: {nbytes / 1e6:,.1f} MB of {sum(len(file.weights) for file in linked.values())} weights are read from "
        f"{', '.join(linked)} of the checkpoint: when that changes the artifact is refused; onnx's own checker, which takes no "
        "hard links, refuses it as it is"
    ]


def refuse_changed(directory: Path, places: Mapping[str, str]) -> None:
    """Raises BadInput for a location of external data in the folder of links, `places` {location: a tensor there}, that was
    not linked by mocomp, or that is not what it was."""
    linked = links_of(directory)
    for place, tensor in places.items():
        folder, _, name = place.partition("/")
        if folder != FOLDER:
            continue
        if name not in linked:
            raise BadInput(f"external data of tensor {tensor}: {place} was not linked by mocomp", where=str(directory), fix=FIX)
        if changed := next(_changed(directory / place, linked[name]), None):
            raise BadInput(
                f"{changed} is not what it was when the artifact was made: {linked[name].source} has changed",
                where=str(directory / place),
                fix=FIX,
            )


def _changed(path: Path, linked: LinkedFile) -> Iterator[str]:
    """What is not as it was; the checksums are asked only where size or time say that something may be."""
    if not path.is_file():
        yield path.name
        return
    stat = path.stat()
    if (stat.st_size, stat.st_mtime_ns) == (linked.bytes, linked.changed):
        return
    for name, (offset, length, checksum) in linked.weights.items():
        if sha256_of(path, offset, length) != checksum:
            yield f"weight {name}"
