"""Whether an artifact's weights are still those that were written, by the checksums in its report.

The proof of quantised weights takes them from the artifact itself, so whether they are the ones that were made of the source
(`stored.compare`, when the artifact is made) has to be known by other means when it is proven again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mocomp import terminal
from mocomp.errors import BadInput, ParityFailed
from mocomp.executors import open_executor
from mocomp.lowering.tensor_places import damaged_tensors
from mocomp.resources import Resources
from mocomp.targets import Artifact
from mocomp.weights.checksums import Part, intact
from mocomp.weights.own_files import own_file
from mocomp.weights.record import FILES, recorded_files

AS_THEY_STAND = "its report is of an older version and has no checksums: the quantised weights were taken as they stand"
FIX = "`mocomp verify DIR` tells more. Convert again, or bring back the files that were made."
SHOWN = 4


def refuse_other_weights(
    directory: Path, mark: str, data: dict[str, Any], artifact: Artifact, resources: Resources | None
) -> list[str]:
    """Notes on what could not be told. Raises ParityFailed, with the names of tensors, where the files of an artifact with
    quantised weights are not those that `data`, its report in the file `mark`, tells of."""
    if not artifact.formats:
        return []
    if FILES not in data:
        return [AS_THEY_STAND]
    known = recorded_files(directory, data, mark)
    without = [file for file in artifact.files if file not in known]
    parts: list[Part] = []
    for file in (file for file in artifact.files if file in known):
        size, own = known[file]
        if _size(directory, file) != size:
            raise ParityFailed(f"{file} is not of the size that was written", where=str(directory), fix=FIX)
        parts += own
    broken = _broken(directory, parts, resources or Resources())
    if not broken:
        return [f"{file}: its report has no checksum of it, so it was taken as it stands" for file in without]
    file = broken[0].file
    names = damaged_tensors(directory, file, [(part.offset, part.length) for part in broken if part.file == file])
    among = f", in the bytes of {', '.join(names[:SHOWN])}{' and others' * (len(names) > SHOWN)}" if names else ""
    raise ParityFailed(f"{file} is not what was made{among}", where=str(directory), fix=FIX)


def _size(directory: Path, file: str) -> int:
    try:
        return own_file(directory, file).stat().st_size
    except BadInput as error:
        raise ParityFailed(f"{file}: {error.what}", where=str(directory), fix=FIX) from error


def _broken(directory: Path, parts: list[Part], resources: Resources) -> list[Part]:
    executor = open_executor(resources)
    try:
        with terminal.progress("checking", sum(part.length for part in parts)) as advance:
            return sorted(part for part, same in intact(directory, parts, executor, advance) if not same)
    finally:
        executor.close()
