"""Commands that look and change nothing."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from mocomp.outcome import outcome_of


@click.command()
@click.argument("source")
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that the checkpoint brings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(source: str, trust_remote_code: bool, as_json: bool) -> None:
    """Layers, experts, routers, parameters and bytes of SOURCE; reads no weights."""

    def work() -> Any:
        from mocomp.models.inspection import inspect as run

        return run(source, trust_remote_code)

    inspection = outcome_of(work)
    from mocomp.report.table import print_inspection

    print(json.dumps(dataclasses.asdict(inspection))) if as_json else print_inspection(inspection)


@click.command("list")
@click.argument(
    "what",
    type=click.Choice(["routers", "scorers", "experts", "formats", "algorithms", "targets", "executors", "passes", "models"]),
)
def list_(what: str) -> None:
    """What there is: routers, scorers, experts, formats, algorithms, targets, executors, passes or models."""

    def work() -> Any:
        from mocomp.report.listing import listing

        return listing(what)

    for name, summary in outcome_of(work):
        click.echo(f"{name:24}{summary}")
