"""Options that tell what a module of the user's own takes and gives, which several commands share."""

from __future__ import annotations

from typing import Any

import click


def of_module(command: Any) -> Any:
    """The options of a module, on a command that opens sources."""
    for option in reversed(MODULE):
        command = option(command)
    return command


MODULE = (
    click.option("--inputs", metavar="FILE", help="For a module of your own: example inputs by their names, a .npz file."),
    click.option(
        "--dynamic", metavar="INPUT=DIM,...", multiple=True, help="Its dimensions that may change: input_ids=batch,seq."
    ),
    click.option(
        "--outputs", metavar="NAME,...", help="What to call its outputs.  [default: keys and fields, or output_0, ...]"
    ),
    click.option("--state", metavar="FILE", help="Its weights, a .safetensors file.  [default: as it is made]"),
)
