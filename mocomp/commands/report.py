"""mocomp report: the page of an artifact, made again from what its directory holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mocomp.report.page import write
from mocomp.report.page.findings import collect


@dataclass(frozen=True)
class Made:
    """Where the page is, its bytes, and the files whose results are on it."""

    page: str
    bytes: int
    shows: list[str]
    absent: dict[str, str]
    """The command that makes each file that is not there."""


def report(directory: Path, output: Path | None) -> Made:
    """Write the page. Raises BadInput for what is no artifact, for damaged files and for an output that cannot be written."""
    findings = collect(directory)
    path = write(directory, output)
    return Made(str(path), path.stat().st_size, findings.present, findings.absent)
