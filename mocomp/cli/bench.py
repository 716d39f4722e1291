"""The command that times."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click

from mocomp.outcome import outcome_of


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--batch", metavar="N,...", help="Sequences, or images.  [default: 1; 1,8 where nothing is generated]")
@click.option("--sequence", metavar="N,...", help="New tokens.  [default: 1 after 128, 128 and 512; 16 and 128 to encode]")
@click.option("--past", metavar="N,...", help="Tokens in the cache before them.  [default: 0 with --sequence]")
@click.option("--mix", multiple=True, metavar="NAME=SHARE,...", help="Shares of modalities; repeatable.  [default: equal ones]")
@click.option("--modality", multiple=True, metavar="NAME=SPEC", help="Whose tokens are whose, if not known: image=200..255.")
@click.option("--threads", type=int, help="Processors that every subject is kept on.  [default: all]")
@click.option(
    "--baseline",
    multiple=True,
    type=click.Choice(["torch", "compile", "transformers", "none"]),
    help="Time beside it: torch eager, torch.compile, the transformers exporter; repeatable.  [default: torch]",
)
@click.option("--rounds", type=int, help="Turns that every subject has at every point.  [default: 7]")
@click.option("--seconds", type=float, help="Length of a turn, if three runs are no longer.  [default: 0.15]")
@click.option("--seed", type=int, help="Seed of the inputs.  [default: 0]")
@click.option("--against", metavar="FILE", help="Compare with what an earlier bench wrote.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the result here, too.")
@click.option(
    "--config", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Options from a JSON or YAML file."
)
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run the Python code that the source brings.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on standard output.")
def bench(directory: Path, output: Path | None, config: Path | None, as_json: bool, **given: Any) -> None:
    """Time an artifact beside its alternatives and the roofline of the machine; kept as bench.json in DIRECTORY."""

    def work() -> Any:
        from mocomp.commands.bench import BenchOptions
        from mocomp.commands.bench import bench as run

        options = BenchOptions.read(config) if config else BenchOptions()
        chosen = {name: value for name, value in given.items() if value not in (None, ())}
        return run(directory, dataclasses.replace(options, **chosen), output)

    result = outcome_of(work)
    from mocomp.report.bench import print_bench

    print(json.dumps(result)) if as_json else print_bench(result)
