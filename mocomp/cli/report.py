"""The command that makes the page of an artifact."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from mocomp.outcome import outcome_of


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write.  [default: DIRECTORY/report.html]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def report(directory: Path, output: Path | None, as_json: bool) -> None:
    """Make the page of an artifact: one HTML file, from what convert, bench, usage, eval and parity left in DIRECTORY."""

    def work() -> Any:
        from mocomp.commands.report import report as run

        return run(directory, output)

    made = outcome_of(work)
    from mocomp.report.console import line
    from mocomp.report.page.words import size

    if as_json:
        print(json.dumps(dataclasses.asdict(made)))
        return
    line(f"{made.page}: {size(made.bytes)}, from {', '.join(made.shows)}")
    for name, command in made.absent.items():
        line(f"  not there: {name} ({command})")
