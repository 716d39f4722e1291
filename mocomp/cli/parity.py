"""The command that proves."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from mocomp.outcome import outcome_of


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option("--reference", help="Compare with this source instead of the one it was made from.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
def parity(directory: Path, reference: str | None, seed: int, as_json: bool) -> None:
    """Prove an artifact again, against the original."""

    def work() -> Any:
        from mocomp.commands.parity import parity as run

        return run(directory, reference, seed)

    verdict = outcome_of(work)
    from mocomp.report.table import print_parity

    if as_json:
        print(json.dumps(dataclasses.asdict(verdict) | {"passed": verdict.passed}))
    else:
        print_parity(verdict)
    sys.exit(0 if verdict.passed else 1)
