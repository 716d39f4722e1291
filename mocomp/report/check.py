"""What a check found, as data and on a terminal."""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from mocomp.capability import Gap
from mocomp.report.console import line
from mocomp.terminal import printable


@dataclass(frozen=True)
class Check:
    """What a target lacks for a source, an artifact or an ONNX file; `place` says on what it would run."""

    subject: str
    target: str
    place: str
    gaps: list[Gap]
    notes: list[str]

    @property
    def passed(self) -> bool:
        """Whether nothing blocks."""
        return not any(gap.blocks for gap in self.gaps)

    def as_json(self) -> dict[str, Any]:
        """The same for a program."""
        return dataclasses.asdict(self) | {"passed": self.passed}


def print_check(check: Check) -> None:
    """The verdict, then what blocks, then what is done instead of the rest."""
    blocks = sum(gap.blocks for gap in check.gaps)
    place = f" on {check.place}" if check.place else ""
    if blocks:
        line(f"target {check.target}{place} does not take {check.subject}: {blocks} of {len(check.gaps)} lines block it", "red")
    else:
        how = "with what stands below" if check.gaps else "as it is"
        line(f"target {check.target}{place} takes {check.subject}, {how}", "green")
    if check.gaps:
        _console().print(_table(check.gaps))
    for note in check.notes:
        line(f"note: {note}")


def _table(gaps: list[Gap]) -> Table:
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "where", "why", "instead"):
        grid.add_column(column, overflow="fold")
    for gap in gaps:
        grid.add_row("blocks" if gap.blocks else "", *map(printable, (gap.where, gap.why, gap.instead)))
    return grid


def _console() -> Console:
    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else 160)
