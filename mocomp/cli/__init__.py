"""The command line: parse options, call one function, print one report."""

from __future__ import annotations

import shutil

import click

from mocomp import __version__
from mocomp.cli.bench import bench
from mocomp.cli.build import build
from mocomp.cli.check import check
from mocomp.cli.checkpoints import carve, densify, extend, merge, upcycle
from mocomp.cli.conversion import convert, quantize
from mocomp.cli.evaluate import evaluate
from mocomp.cli.looking import inspect, list_
from mocomp.cli.parity import parity
from mocomp.cli.report import report
from mocomp.cli.usage import prune, usage
from mocomp.cli.verify import verify
from mocomp.cli.zoo import zoo


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def mocomp() -> None:
    """Compile mixture-of-experts models to artifacts whose numbers are proven."""


for command in (
    convert, check, build, quantize, parity, evaluate, bench, usage, report, verify, inspect, list_,
    upcycle, merge, extend, carve, densify, prune, zoo,
):  # fmt: skip
    mocomp.add_command(command)


def main() -> None:
    """What the installed command runs."""
    mocomp(prog_name="mocomp", max_content_width=min(shutil.get_terminal_size().columns, 110))
