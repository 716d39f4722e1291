"""Options of what a command may use of the machines it runs on, which several commands share."""

from __future__ import annotations

from typing import Any

import click

RESOURCES = {
    "memory": click.option("--memory", metavar="SIZE", help="Of weights, besides the largest tensor.  [default: 1GB]"),
    "workers": click.option("--workers", type=int, help="Parts of the work done at once.  [default: as many as cores]"),
    "executor": click.option("--executor", help="Who does them; see `mocomp list executors`.  [default: local]"),
    "address": click.option("--address", metavar="HOST:PORT", help="The cluster of --executor ray.  [default: this machine]"),
}


bounded = RESOURCES["memory"]
"""The one of them that a command takes which writes no weights."""


def resourced(command: Any) -> Any:
    """The options of what may be used, on a command that writes weights; `taken` parts them from its others."""
    for option in reversed(RESOURCES.values()):
        command = option(command)
    return command


def taken(given: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that are of resources and were said, taken out of all that were given."""
    found = {name: given.pop(name) for name in RESOURCES if name in given}
    return {name: value for name, value in found.items() if value is not None}
