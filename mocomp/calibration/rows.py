"""The rows of calibration data as a walk takes them: as many as fit, with nothing past, and some of them held out."""

from __future__ import annotations

from typing import Any

import torch

from mocomp.calibration.data import data_for
from mocomp.models.interface import Interface
from mocomp.models.source import Source

HELD_OUT = 5
"""One row of so many is kept to judge by."""
MOST_TOKENS = 32768
"""Tokens of calibration data that are run; more would fill the memory with activations and change little."""


def rows_for(source: Source, interface: Interface, options: Any, notes: list[str]) -> tuple[list[dict], list[bool]]:
    """(a value for every input of the program by row, whether a row is to learn from).

    Adds to `notes` what the user should know of the data. Raises BadInput for a bad row, by its line.
    """
    data = data_for(source, interface, options.calibration, options.seed, source.plan)
    notes += data.notes
    rows = [row | _no_past(interface) for row in _as_many_as_fit(data.rows, notes)]
    learned = [len(rows) < HELD_OUT or i % HELD_OUT != HELD_OUT - 1 for i in range(len(rows))]
    return rows, learned


def _as_many_as_fit(rows: list[dict], notes: list[str]) -> list[dict]:
    """Rows up to MOST_TOKENS, evenly from the whole, with a note if they are not all."""
    sizes = [max((value.shape[1] for value in row.values() if value.dim() == 2), default=1) for row in rows]
    if sum(sizes) <= MOST_TOKENS:
        return rows
    step = -(-sum(sizes) // MOST_TOKENS)
    notes.append(f"calibration ran on every {step}th of {len(rows)} rows, {sum(sizes[::step])} tokens")
    return rows[::step]


def _no_past(interface: Interface) -> dict[str, torch.Tensor]:
    """Keys and values of length 0 for a generator."""
    return {
        f"past_key_values.{i}.{part}": torch.zeros(1, heads, 0, width)
        for i, (heads, *widths) in enumerate(interface.past)
        for part, width in zip(("key", "value"), widths, strict=True)
    }
