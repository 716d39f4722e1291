"""Sizes and checksums of all files of an output, kept in its report, so that it can tell whether it is still what was made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mocomp.errors import BadInput
from mocomp.weights import disk
from mocomp.weights.checksums import Part, is_span, parts_of
from mocomp.weights.json_files import read_object
from mocomp.weights.own_files import refuse_name

FILES, OWN = "files", "sha256"
"""Keys of a report: what there is of each other file, and the checksum of the report without this key."""
LATER = ("report.html", "bench.json", "eval.json", "usage.json", "bisect.json")
"""Files that other commands write, or write again, once the directory is made."""
LONGEST = 400
"""Characters of a message about what somebody else wrote."""


def seal(directory: Path, mark: str, known: Iterable[Part] = ()) -> None:
    """Write into the report `mark` what all other files of a directory are; parts that are `known` are not read again."""
    data = read_object(directory / mark)
    parts = list(known)
    described = {file: _described(directory, file, [p for p in parts if p.file == file]) for file in files_in(directory)}
    data[FILES] = {file: about for file, about in described.items() if file != mark}
    data[OWN] = own_checksum(data)
    disk.write_text(directory / mark, json.dumps(data, indent=1) + "\n")


def recorded_files(directory: Path, data: dict[str, Any], mark: str) -> dict[str, tuple[int, list[Part]]]:
    """(size, parts) of each file by what a report says. Raises BadInput for one that says nothing usable: names that lead out
    of the directory, numbers that are none of a file, parts that leave a gap or overlap."""
    where, files = str(directory / mark), data.get(FILES)
    if not isinstance(files, dict):
        raise BadInput("it has no checksums", where=where, fix="It is of an older version: make it again.")
    for file in files:
        refuse_name(directory, file)
    try:
        return {file: _recorded(file, about) for file, about in files.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInput(f"its checksums are not readable: {error}"[:LONGEST], where=where, fix="Make it again.") from error


def _recorded(file: str, about: dict[str, Any]) -> tuple[int, list[Part]]:
    size, reached, parts = about["size"], 0, []
    for offset, length, checksum in about["parts"]:
        if not is_span(offset, length) or not isinstance(checksum, str):
            raise ValueError(f"{file} has a part {[offset, length, checksum]}")
        if offset != reached:
            raise ValueError(f"the parts of {file} leave a gap or overlap at byte {offset:,}")
        parts.append(Part(file, offset, length, checksum))
        reached += length
    if not is_span(0, size) or reached != size:
        raise ValueError(f"{file} is said to have {size} bytes, and checksums of {reached:,}")
    return size, parts


def stranger_in(directory: Path, mark: str) -> str | None:
    """A file of a directory of ours that its report does not tell of; None where there is none, and where the report is of a
    version that does not tell of files. Raises BadInput for a report that cannot be read."""
    try:
        told = read_object(directory / mark).get(FILES)
    except BadInput as error:
        fix = "Choose another -o DIR, or remove it yourself."
        raise BadInput(f"its {mark} is damaged, so nobody knows what is in it", where=str(directory), fix=fix) from error
    if told is None:
        return None
    known = {mark, *LATER, *(told if isinstance(told, dict) else ())}
    return next((file for file in files_in(directory) if file not in known), None)


def own_checksum(data: dict[str, Any]) -> str:
    """That of a report: of its keys in order, without the checksum itself and without spaces."""
    rest = {key: value for key, value in data.items() if key != OWN}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def files_in(directory: Path) -> Iterator[str]:
    """Every file of a directory and those inside it, as paths in it, in order; a link is one, whatever it leads to."""
    for folder, folders, names in os.walk(directory):
        folders.sort()
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        yield from sorted(str((Path(folder) / name).relative_to(directory)) for name in (*names, *links))


def _described(directory: Path, file: str, known: list[Part]) -> dict[str, Any]:
    parts = parts_of(directory, file, known)
    return {"size": sum(part.length for part in parts), "parts": [[p.offset, p.length, p.sha256] for p in parts]}
