"""The command that measures quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from mocomp.cli.resources import bounded, taken
from mocomp.outcome import outcome_of


@click.command("eval")
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--data", metavar="FILE", help="JSON lines of text or input_ids, .npz or .safetensors.  [default: random inputs]")
@click.option("--rows", type=int, help="So many rows at most, evenly from the whole.  [default: all]")
@click.option(
    "--modality",
    multiple=True,
    metavar="NAME=SPEC",
    help="Perplexity by modality: image=200..255 (ids), image=config, image=INPUT:1, image=position:0..99; the rest is text.  "
    "[default: what the source says]",
)
@click.option("--reference", metavar="SOURCE", help="Compare with this source.  [default: the one it was made from]")
@click.option("--seed", type=int, help="Seed of random inputs.  [default: 0]")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run the Python code that the source brings.")
@bounded
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(directory: Path, as_json: bool, **given: Any) -> None:
    """How good an artifact is on data beside its source: perplexity, agreement, KL; cosine and retrieval for encoders."""

    def work() -> Any:
        from mocomp.commands.evaluate import EvalOptions
        from mocomp.commands.evaluate import evaluate as run
        from mocomp.resources import Resources

        resources = Resources(**taken(given))
        return run(directory, EvalOptions(**{name: value for name, value in given.items() if value is not None}), resources)

    found = outcome_of(work)
    from mocomp.report.evaluation import print_evaluation

    print(json.dumps(found.as_json())) if as_json else print_evaluation(found)
