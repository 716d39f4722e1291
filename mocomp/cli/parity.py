"""The command that proves."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import click

from mocomp.cli.resources import resourced, taken
from mocomp.outcome import outcome_of


@click.command()
@click.argument("directory")
@click.argument("other", required=False)
@click.option("--bisect", is_flag=True, help="Name the first pass, and the first layer, that leaves the tolerance.")
@click.option("--ranks", is_flag=True, help="Prove the graphs of --expert-parallel, all ranks together.")
@click.option("--reference", metavar="SOURCE", help="Compare with this source.  [default: the one it was made from]")
@click.option("--inputs", metavar="FILE", help="Inputs: JSON lines, .npz or .safetensors.  [default: generated ones]")
@click.option("--text", metavar="TEXT", multiple=True, help="Text to run on; may be given several times.")
@click.option("--seed", type=int, help="Seed of generated inputs.  [default: 0]")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run the Python code that the source brings.")
@click.option("--blocks", is_flag=True, help="Run both part by part, and each mixture alone.  [default: where memory is short]")
@resourced
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as one JSON object.")
def parity(directory: str, other: str | None, bisect: bool, blocks: bool, ranks: bool, as_json: bool, **given: Any) -> None:
    """Prove an artifact again, against the original.

    With OTHER, compare two models of any kind: DIRECTORY and OTHER are each an artifact, or a source.
    """

    def work() -> Any:
        from mocomp.commands.parity import ParityOptions
        from mocomp.commands.parity import parity as run
        from mocomp.errors import Usage
        from mocomp.resources import Resources

        resources = Resources(**taken(given))
        given["parity"] = "blocks" if blocks else None
        options = ParityOptions(**{name: value for name, value in given.items() if value is not None})
        if ranks:
            if other is not None or bisect or blocks:
                raise Usage("--ranks with another way to compare", fix="Name one artifact, and neither --bisect nor --blocks.")
            from mocomp.commands.ranks import parity_of_ranks

            return parity_of_ranks(Path(directory), options, resources)
        if not bisect:
            return run(directory, other, options, resources)
        if other is not None:
            raise Usage("--bisect looks into the making of one artifact, and two are named", fix="Leave one of them out.")
        from mocomp.commands.bisect import bisect_artifact

        return bisect_artifact(Path(directory), options)

    verdict = outcome_of(work)
    print(json.dumps(_as_json(verdict))) if as_json else _show(verdict)
    sys.exit(0 if verdict.passed else 1)


def _as_json(verdict: Any) -> dict[str, Any]:
    from mocomp.report import bisect as reports
    from mocomp.verify.between import Difference
    from mocomp.verify.bisect import Bisection

    if isinstance(verdict, Bisection):
        return reports.as_json(verdict)
    if isinstance(verdict, Difference):
        return reports.difference_as_json(verdict)
    return dataclasses.asdict(verdict) | {"passed": verdict.passed}


def _show(verdict: Any) -> None:
    from mocomp.report.bisect import print_bisection, print_difference
    from mocomp.report.table import print_parity
    from mocomp.verify.between import Difference
    from mocomp.verify.bisect import Bisection

    kinds = {Bisection: print_bisection, Difference: print_difference}
    kinds.get(type(verdict), print_parity)(verdict)
