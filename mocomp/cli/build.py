"""The command that builds engines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from mocomp.cli.deployment import engines
from mocomp.outcome import outcome_of


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--reference", metavar="SOURCE", default="", help="Compare with this source.  [default: the one it was made from]"
)
@engines
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that the source brings.")
@click.option("--json", "as_json", is_flag=True, help="Print what was built as one JSON object.")
def build(directory: Path, reference: str, trust_remote_code: bool, as_json: bool, **given: Any) -> None:
    """Build the TensorRT engines of an artifact that was converted with --emulate, and prove them.

    What is not said is as it was when it was converted.
    """

    def work() -> Any:
        from mocomp.commands.build import build as run

        said = {name: value for name, value in given.items() if value not in (None, ())}
        return run(directory, said, reference, trust_remote_code)

    built = outcome_of(work)
    if as_json:
        print(json.dumps(dataclasses.asdict(built)))
        return
    from mocomp.report.console import line

    line(f"built {', '.join(built.files)}")
    for note in built.notes:
        line(f"  note: {note}")
    if built.parity is not None:
        from mocomp.report.table import print_parity

        print_parity(built.parity)
