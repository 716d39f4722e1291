"""The command that asks what a target lacks, before any long work."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from mocomp.cli.deployment import deployed
from mocomp.cli.module import of_module
from mocomp.outcome import outcome_of


@click.command()
@click.argument("subject", metavar="SOURCE|DIR|FILE.onnx")
@click.option("--target", help="What to make; see `mocomp list targets`.  [default: onnxruntime, or that of DIR]")
@click.option("--quantize", metavar="FORMAT", help="Experts in few bits: int4, int4:64:asym, int8, nvfp4, ...")
@click.option("--quantize-dense", metavar="FORMAT", help="The same for attention, shared experts and the head.")
@click.option("--group-size", type=int, help="Columns that share a scale.  [default: 32 for int2 and int4, a row for int8]")
@deployed
@of_module
@click.option("--task", help="text-generation, feature-extraction, ...; by default what config.json says.")
@click.option("--trust-remote-code", is_flag=True, default=None, help="Run the Python code that the checkpoint brings.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(subject: str, as_json: bool, **given: Any) -> None:
    """What a target lacks for SOURCE, for the artifact DIR, or for any ONNX graph.

    Of a checkpoint no weights are read; a module of your own, or a .pt2 file, is run on its example inputs.

    Each gap with where it is, why, and what is done instead or which option avoids it; those that block come first.
    Neither the GPU nor its runtime has to be here. Exits with 0 when nothing blocks, with 3 when something does.
    """

    def work() -> Any:
        from mocomp.commands.check import check as run

        return run(subject, {name: value for name, value in given.items() if value not in (None, ())})

    found = outcome_of(work)
    from mocomp.report.check import print_check

    print(json.dumps(found.as_json())) if as_json else print_check(found)
    sys.exit(0 if found.passed else 3)
