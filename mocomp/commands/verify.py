"""mocomp verify: whether a directory is still what was made, every byte of it, and whether it loads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from mocomp import report as reports
from mocomp import terminal
from mocomp.errors import BadInput, MissingDependency, MocompError
from mocomp.executors import open_executor
from mocomp.lowering.tensor_places import damaged_tensors
from mocomp.models.binding import bind
from mocomp.models.source import open_source
from mocomp.nn.model import empty
from mocomp.opening import reopen
from mocomp.resources import Resources
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.checksums import Part, intact
from mocomp.weights.json_files import read_object
from mocomp.weights.own_files import own_file
from mocomp.weights.record import LATER, OWN, files_in, own_checksum, recorded_files

SHOWN = 3


@dataclass
class Verified:
    """What was looked at, in files and bytes; `differences` from what was made, none where all is well; files that were written
    `later`; and how it was loaded, or why it was not."""

    directory: str
    files: int = 0
    bytes: int = 0
    differences: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    loads: str = ""

    @property
    def whole(self) -> bool:
        """Whether it is what was made."""
        return not self.differences


def verify(directory: Path, trust_remote_code: bool = False, resources: Resources | None = None) -> Verified:
    """Compare the files of an artifact, or of a checkpoint that mocomp made, with what their report says of them, and load it.

    Raises BadInput for a directory without a report, and for a report without checksums.
    """
    mark = next((name for name in (reports.NAME, reports.RECEIPT) if (directory / name).is_file()), None)
    if mark is None:
        raise BadInput(
            f"no {reports.NAME} and no {reports.RECEIPT}", where=str(directory), fix="Point at a directory that mocomp made."
        )
    data = read_object(directory / mark)
    recorded = recorded_files(directory, data, mark)
    found = Verified(str(directory), files=len(recorded) + 1)
    if data.get(OWN) != own_checksum(data):
        found.differences.append(f"{mark}: it is not as it was written")
    _compare_names(directory, mark, recorded, found)
    _compare_bytes(directory, recorded, found, resources or Resources())
    if found.whole:
        _load(directory, mark, trust_remote_code, found)
    return found


def _compare_names(directory: Path, mark: str, recorded: dict[str, tuple[int, list[Part]]], found: Verified) -> None:
    there = set(files_in(directory)) - {mark}
    found.later += sorted(name for name in LATER if name in there and name not in recorded)
    found.differences += [f"{name}: it was not there" for name in sorted(there - recorded.keys() - set(LATER))]
    found.differences += [f"{name}: it is missing" for name in sorted(recorded.keys() - there)]


def _compare_bytes(directory: Path, recorded: dict[str, tuple[int, list[Part]]], found: Verified, resources: Resources) -> None:
    parts = list(_readable(directory, recorded, found))
    executor = open_executor(resources)
    broken: dict[str, list[tuple[int, int]]] = {}
    try:
        with terminal.progress("checking", sum(part.length for part in parts)) as advance:
            for part, same in intact(directory, parts, executor, advance):
                found.bytes += part.length
                if not same:
                    broken.setdefault(part.file, []).append((part.offset, part.length))
    finally:
        executor.close()
    for file in sorted(broken):
        if file in LATER:
            found.later.append(file)
        else:
            found.differences.append(_told(file, sorted(broken[file]), damaged_tensors(directory, file, broken[file])))


def _readable(directory: Path, recorded: dict[str, tuple[int, list[Part]]], found: Verified) -> Iterator[Part]:
    """The parts of those files that are there and as long as they were; of the others it is told that they are not."""
    for file, (size, parts) in recorded.items():
        if not os.path.lexists(directory / file):
            continue
        try:
            length = own_file(directory, file).stat().st_size
        except BadInput as error:
            found.differences.append(f"{file}: {error.what}")
            continue
        if length != size and file in LATER:
            found.later.append(file)
            continue
        if length != size:
            found.differences.append(f"{file}: it has {length:,} bytes, and {size:,} were written")
        yield from (part for part in parts if part.offset + part.length <= length)


def _told(file: str, spans: list[tuple[int, int]], tensors: list[str]) -> str:
    first = f"bytes {spans[0][0]:,} to {sum(spans[0]):,}"
    where = first + (f" and {len(spans) - 1} more parts" if len(spans) > 1 else "")
    rest = f" and {len(tensors) - SHOWN} more" if len(tensors) > SHOWN else ""
    names = f": {', '.join(tensors[:SHOWN])}{rest}" if tensors else ""
    return f"{file}: damaged at {where}{names}"


def _load(directory: Path, mark: str, trust_remote_code: bool, found: Verified) -> None:
    """A session of an artifact, or the class of a checkpoint with a place for each of its weights."""
    try:
        found.loads = _opened(directory, trust_remote_code) if mark == reports.NAME else _bound(directory, trust_remote_code)
    except MissingDependency as error:
        found.loads = f"not loaded: {error.what}"
    except MocompError as error:
        found.differences.append(f"it does not load: {error}")


def _opened(directory: Path, trust_remote_code: bool) -> str:
    data = reports.read(directory, trust_remote_code)
    if data["options"]["weights"] == "none":
        return "not loaded: it is a graph without weights"
    target = reopen(data)
    target.open(directory)
    return f"loaded in a session of target {target.name}"


def _bound(directory: Path, trust_remote_code: bool) -> str:
    with terminal.phase("loading"), Checkpoint(directory) as checkpoint:
        source = open_source(str(directory), trust_remote_code)
        _, unused = bind(empty(source), checkpoint)
    if unused:
        raise BadInput(f"{len(unused)} tensors have no place in the model, among them {unused[0]}", where=str(directory))
    return f"each weight has its place in {source.model_class.__name__}"
