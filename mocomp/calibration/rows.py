"""The rows of calibration data as a walk takes them: as many as fit, with nothing past, and some of them held out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mocomp.calibration.data import data_for
from mocomp.models.interface import Interface
from mocomp.models.source import Source

HELD_OUT = 5
"""One row of so many is kept to judge by."""
TOGETHER = 256
"""Tokens of one call, where a row has no more: the logits of all of them are in memory at once, for each stream."""
MOST_TOKENS = 32768
"""Tokens of calibration data that are run; more would fill the memory with activations and change little."""


def rows_for(source: Source, interface: Interface, options: Any, notes: list[str]) -> tuple[list[dict], list[bool]]:
    """(a value for every input of the program, for some rows together; whether they are to learn from).

    Adds to `notes` what the user should know of the data. Raises BadInput for a bad row, by its line.
    """
    data = data_for(source, interface, options.calibration, options.seed, source.plan)
    notes += data.notes
    rows = _as_many_as_fit(data.rows, notes)
    batches, learned = [], []
    for told in (True, False):
        of_kind = [row for i, row in enumerate(rows) if told is (len(rows) < HELD_OUT or i % HELD_OUT != HELD_OUT - 1)]
        made = list(_batches(of_kind))
        batches += [batch | _no_past(interface, batch) for batch in made]
        learned += [told] * len(made)
    return batches, learned


def _batches(rows: list[dict]) -> Iterator[dict]:
    """Rows of one length together, so that the model is called less often; a row that is not a batch of one stays alone."""
    alike: dict[Any, list[dict]] = {}
    for i, row in enumerate(rows):
        key = tuple((name, value.shape) for name, value in row.items())
        alike.setdefault(key if all(value.shape[0] == 1 for value in row.values()) else i, []).append(row)
    for members in alike.values():
        count = max(TOGETHER // _tokens(members[0]), 1)
        for start in range(0, len(members), count):
            part = members[start : start + count]
            yield {name: torch.cat([row[name] for row in part]) for name in part[0]}


def _as_many_as_fit(rows: list[dict], notes: list[str]) -> list[dict]:
    """Rows up to MOST_TOKENS, evenly from the whole, with a note if they are not all."""
    sizes = [_tokens(row) for row in rows]
    if sum(sizes) <= MOST_TOKENS:
        return rows
    step = -(-sum(sizes) // MOST_TOKENS)
    notes.append(f"calibration ran on every {step}th of {len(rows)} rows, {sum(sizes[::step])} tokens")
    return rows[::step]


def _tokens(row: dict) -> int:
    """How many tokens a row has; an image counts as one."""
    return max((value.shape[1] for value in row.values() if value.dim() == 2), default=1)


def _no_past(interface: Interface, batch: dict) -> dict[str, torch.Tensor]:
    """Keys and values of length 0 for a generator."""
    count = next(iter(batch.values())).shape[0]
    return {
        f"past_key_values.{i}.{part}": torch.zeros(count, heads, 0, width)
        for i, (heads, *widths) in enumerate(interface.past)
        for part, width in zip(("key", "value"), widths, strict=True)
    }
