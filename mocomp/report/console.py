"""What a report is printed with: lines, tables, and numbers as people say them."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mocomp.terminal import printable

_console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
_of_tables = Console(highlight=False, width=240)
"""Wide, so that no figure is cut; a narrower terminal wraps the lines."""


def line(text: str, style: str = "") -> None:
    """One line that the terminal may wrap and that a file keeps whole."""
    _console.print(Text(printable(text), style=style), soft_wrap=True)


def table(columns: list[str], rows: Sequence[Sequence[str | Text]], left: int = 1) -> None:
    """Rows under their columns, the first `left` of them words and the others numbers. A cell of plain text means itself,
    whatever stands in it."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        grid.add_column(column, justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    _of_tables.print(grid, soft_wrap=True)


def count(number: float) -> str:
    """Parameters as people say them: 30.5 B, 1.3 M."""
    return f"{number / 1e9:.1f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def size(number: float) -> str:
    """Bytes as people say them: 1.21 GB, 5.1 MB."""
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
