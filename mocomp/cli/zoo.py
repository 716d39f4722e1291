"""The commands of the zoo."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from mocomp.errors import ParityFailed
from mocomp.outcome import outcome_of


@click.group()
def zoo() -> None:
    """Mechanisms of the literature in small models: convert them all, and prove each."""


@zoo.command("run")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--target", "targets", multiple=True, metavar="NAME", help="Repeatable.  [default: onnxruntime, onnx]")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Keep the artifacts here, as NAME/TARGET.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on standard output.")
def run(names: tuple[str, ...], targets: tuple[str, ...], output: Path | None, as_json: bool) -> None:
    """Convert the named mechanisms, or all, and prove each at other sizes than it was traced at."""

    def work() -> Any:
        from mocomp.commands.zoo import TARGETS, entries_of
        from mocomp.commands.zoo import run as convert_all

        return convert_all(entries_of(names), targets or TARGETS, output)

    report = outcome_of(work)
    from mocomp.report.zoo import print_zoo

    print(json.dumps(report.as_json())) if as_json else print_zoo(report)
    sys.exit(ParityFailed.exit_code if report.failed else 0)


@zoo.command("list")
def list_() -> None:
    """The mechanisms, with their hosts and papers; nothing is converted."""

    def work() -> Any:
        from mocomp.zoo.entries import ENTRIES

        return list(ENTRIES.values())

    entries = outcome_of(work)
    from mocomp.report.console import table

    rows = [[entry.name, entry.host.partition(":")[0], entry.paper, entry.refused and "refused"] for entry in entries]
    table(["name", "host", "paper", ""], rows, left=4)
