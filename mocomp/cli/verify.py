"""The command that looks whether a directory is still what was made."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from mocomp.cli.resources import resourced, taken
from mocomp.errors import BadInput
from mocomp.outcome import outcome_of


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--trust-remote-code", is_flag=True, default=False, help="Run the Python code that the checkpoint brings.")
@resourced
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(directory: Path, trust_remote_code: bool, as_json: bool, **given: Any) -> None:
    """Check an artifact, or a checkpoint that mocomp made: every byte of its files, and that it loads."""

    def work() -> Any:
        from mocomp.commands.verify import verify as run
        from mocomp.resources import Resources

        return run(directory, trust_remote_code, Resources(**taken(given)))

    found = outcome_of(work)
    print(json.dumps(dataclasses.asdict(found) | {"whole": found.whole})) if as_json else _show(found)
    sys.exit(0 if found.whole else BadInput.exit_code)


def _show(found: Any) -> None:
    from mocomp.report.console import line, size

    for difference in found.differences:
        line(f"{found.directory}/{difference}", style="red")
    if found.later:
        line(f"written later, and not compared: {', '.join(found.later)}")
    if not found.whole:
        return line(f"{len(found.differences)} differences from what was made")
    line(f"{found.directory} is as it was made: {found.files} files, {size(found.bytes)}; {found.loads}")
