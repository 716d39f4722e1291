"""Commands that look and change nothing."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import click

from mocomp.cli.module import of_module
from mocomp.outcome import outcome_of


@click.command()
@click.argument("source")
@of_module
@click.option("--trust-remote-code", is_flag=True, help="Run the Python code that the checkpoint brings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(source: str, as_json: bool, **given: Any) -> None:
    """Layers, experts, routers, parameters and bytes of SOURCE; writes nothing.

    Of a checkpoint no weights are read. A module of your own, or a .pt2 file, is run: inputs and outputs, the mixtures that
    were recognised and proven, and what came near with the reason.
    """

    def work() -> Any:
        from mocomp.commands.inspect import inspect as run
        from mocomp.options import ConvertOptions

        return run(source, ConvertOptions(**{name: value for name, value in given.items() if value not in (None, ())}))

    inspection = outcome_of(work)
    from mocomp.report.module import ModuleInspection, print_module
    from mocomp.report.table import print_inspection

    if as_json:
        print(json.dumps(dataclasses.asdict(inspection)))
        return
    print_module(inspection) if isinstance(inspection, ModuleInspection) else print_inspection(inspection)


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
