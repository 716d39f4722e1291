"""The commands that look at which experts are used, and take away those that are not."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from mocomp.cli.checkpoints import COMMON, MODALITY, OTHERWISE, OUTPUT
from mocomp.cli.resources import bounded, taken
from mocomp.outcome import outcome_of

DATA = click.option(
    "--data", metavar="FILE", help="JSON lines with text or input_ids, or inputs as .npz or .safetensors.  [default: random]"
)


@click.command()
@click.argument("source", metavar="SOURCE|DIR")
@DATA
@MODALITY
@OTHERWISE
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="File to write the result to, as JSON.")
@click.option("--task", help="text-generation, feature-extraction, ...; by default what config.json says.")
@click.option("--seed", type=int, help="Seed of random data, and of the tokens that experts are compared on.  [default: 0]")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run the Python code that the checkpoint brings.")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Options from a JSON or YAML file."
)
@bounded
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on standard output.")
def usage(source: str, output: Path | None, config: Path | None, as_json: bool, **given: Any) -> None:
    """Which experts of SOURCE, or of what the artifact DIR was made from, the tokens of your data go to.

    A heat map of layers and experts, split by modality; dead and duplicate experts; what pruning would save and cost.
    Tokens that no --modality names are text, unless --otherwise says what they are.
    With DIR the result is kept there as usage.json, for `mocomp report`.
    """

    def work() -> Any:
        from mocomp.commands import usage as command
        from mocomp.resources import Resources

        resources = Resources(**taken(given))
        return command.usage(source, _options(command.UsageOptions, config, given), output, resources)

    report = outcome_of(work)
    from mocomp.report.usage import print_usage

    print(json.dumps(report.as_json())) if as_json else print_usage(report)


@click.command()
@click.argument("source")
@OUTPUT
@click.option("--experts", type=int, metavar="N", help="Leave N in each layer; in each group, where there are groups.")
@click.option("--budget", metavar="SIZE", help="Leave what fits: bytes of all weights together, such as 500MB.")
@click.option("--dead", is_flag=True, default=None, help="Remove the experts that no token of the data chose, and no other.")
@click.option(
    "--by",
    type=click.Choice(["usage", "router_norm", "output_error"]),
    help="Which go first: those of the least weight on the data, of the shortest row of the router, or, one after the "
    "other, those whose absence moves the output of their layer least.  [default: usage]",
)
@DATA
@MODALITY
@OTHERWISE
@COMMON
def prune(source: str, output: Path, config: Path | None, as_json: bool, target: str, **given: Any) -> None:
    """Take away the experts that the mixture SOURCE needs least; the receipt says what that moved on the data."""

    def work() -> Any:
        from mocomp.commands import prune as command
        from mocomp.resources import Resources

        resources = Resources(**taken(given))
        return command.prune(source, output, _options(command.PruneOptions, config, given), resources)

    receipt = outcome_of(work)
    from mocomp.report import RECEIPT, as_line
    from mocomp.report.table import print_receipt

    print(as_line(output, RECEIPT)) if as_json else print_receipt(receipt, output)


def _options(kind: Any, config: Path | None, given: dict[str, Any]) -> Any:
    """The options of a file, and over them those of the command line."""
    chosen = {name: value for name, value in given.items() if value not in (None, ())}
    return dataclasses.replace(kind.read(config) if config else kind(), **chosen)
