"""The rows that a router starts with: drawn, zero, or made of what comes to it on calibration data."""

from __future__ import annotations

from mocomp.calibration.capture import observed
from mocomp.errors import Usage
from mocomp.fill.routing import Rows, hidden_rows, random_rows, zero_rows
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.options import UpcycleOptions
from mocomp.plans.modality import Modality


def first_rows(
    source: Source, interface: Interface, names: list[str], modality: Modality | None, options: UpcycleOptions, memory: int
) -> tuple[Rows, list[str]]:
    """(the rows of routers in place of the blocks `names`, notes on the data that they were made of)."""
    if options.router_init != "hidden":
        if options.calibration:
            raise Usage("--calibration is for --router-init hidden")
        return {"random": random_rows(options.seed), "zero": zero_rows}[options.router_init], []
    seen, notes = observed(source, interface, names, options.calibration, options.seed, modality, memory)
    order = modality.names if modality is not None else ("all",)
    return hidden_rows(lambda block, group: seen[block.enter].of(order.index(group)), options.seed), notes
