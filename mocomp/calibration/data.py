"""Rows to run a model over: those of the user's, or random ones.

Dimension letters: S tokens of a row.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mocomp.calibration import arrays_of
from mocomp.errors import BadInput, Usage
from mocomp.models.interface import Interface, is_per_token
from mocomp.models.source import Source
from mocomp.plans.modality import IDS, POSITION, Modality
from mocomp.plans.plan import ModelPlan
from mocomp.verify.inputs import Case, Drawn, arrays, longest_of, with_modality

ROWS, LENGTH = 64, 64
"""Rows that are drawn where no data is given, and the tokens of each."""
RANDOM = "no calibration data: activations are those on random {}, which real data may be far from"
Row = dict[str, torch.Tensor]
"""The inputs of one call by their names, for a batch of one without padding."""


@dataclass
class Data:
    """Rows to run a model over; `notes` says what about them the user should know."""

    rows: list[Row]
    notes: list[str] = field(default_factory=list)


def data_for(source: Source, interface: Interface, file: str, seed: int, plan: ModelPlan | None = None) -> Data:
    """The rows of a file of JSON lines, .npz or .safetensors; random ones, with a note that says so, when none is given.

    `plan` says whether tokens have modalities. Raises BadInput for a row on which the model could not run, by file and line.
    """
    interface = interface.with_plan(plan)
    if not file:
        drawn = with_modality(plan)
        length = min(LENGTH, longest_of(source.config, drawn) or LENGTH)
        rows = [_drawn(interface, length, seed + i, drawn) for i in range(ROWS)]
        return Data(rows, [RANDOM.format("tokens" if IDS in interface.inputs else "images")])
    if Path(file).suffix in arrays_of.READERS:
        return Data(arrays_of.rows(Path(file), interface, longest_of(source.config, None)))
    if IDS not in interface.inputs:
        raise Usage(
            "calibration data is text, and the model reads images",
            fix="Give its inputs as .npz or .safetensors, or leave it out: random images are taken.",
        )
    modality = plan.modality if plan is not None else None
    rows = list(_Reader(source, interface, modality, seed).rows(Path(file)))
    if not rows:
        raise BadInput("it has no rows", where=file, fix='One JSON object per line, such as {"text": "..."}.')
    return Data(rows, [RANDOM.format("images beside the texts")] if "pixel_values" in interface.inputs else [])


def modality_of(row: Row, modality: Modality | None) -> torch.Tensor | None:
    """The modalities [1, S] of a row's tokens; None where it has none, or they go by their positions in an image."""
    if modality is None or not modality.per_token:
        return None
    if modality.key != POSITION:
        return modality.of(row[modality.key])
    return modality.of(torch.arange(row[IDS].shape[1])[None]) if IDS in row else None


@dataclass
class _Reader:
    """JSON lines as rows of `text` or `input_ids`, and of what else the model wants to know of each token."""

    source: Source
    interface: Interface
    modality: Modality | None
    seed: int
    tokenizer: Any = None

    def rows(self, path: Path) -> Iterator[Row]:
        try:
            lines = path.read_text().split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"not readable: {error}", where=str(path), fix="Give a file of JSON lines.") from error
        for number, line in enumerate(lines, 1):
            if line.strip():
                with _named(f"{path}, line {number}"):
                    yield self._row(line, number)

    def _row(self, line: str, number: int) -> Row:
        try:
            given = json.loads(line)
        except ValueError as error:
            raise BadInput(f"not JSON: {error}", fix="One JSON object per line.") from error
        if not isinstance(given, dict) or ("text" in given) == (IDS in given):
            raise BadInput("expected an object with either text or input_ids")
        ids = self._tokens(given["text"]) if "text" in given else given[IDS]
        tokens = _integers(IDS, ids)
        self._refuse_foreign(tokens)
        row = _drawn(self.interface, len(ids), self.seed + number) | {IDS: tokens}
        for name in self.interface.inputs:
            if is_per_token(name) and name != IDS:
                row[name] = _of_tokens(name, given, tokens)
        modalities = modality_of(row, self.modality)
        if modalities is not None and int(modalities.max()) == len(self.modality.names):  # type: ignore[union-attr]
            raise BadInput("it has a token of no modality", fix="See --modality and --otherwise.")
        return row

    def _tokens(self, text: Any) -> list[int]:
        if not isinstance(text, str):
            raise BadInput(f"text is {type(text).__name__}, expected a string")
        if self.tokenizer is None:
            from transformers import AutoTokenizer

            try:
                told = {"trust_remote_code": self.source.trust_remote_code}
                self.tokenizer = AutoTokenizer.from_pretrained(self.source.directory, **told)
            except Exception as error:
                raise BadInput(
                    f"text needs a tokenizer, and {self.source.directory} has none that can be read",
                    fix="Give input_ids instead, or put the tokenizer's files beside config.json.",
                ) from error
        return self.tokenizer(text).input_ids

    def _refuse_foreign(self, ids: torch.Tensor) -> None:
        """What would be outside of a table of the model."""
        longest = longest_of(self.source.config, None)
        if longest is not None and ids.shape[1] > longest:
            raise BadInput(f"it has {ids.shape[1]} tokens, and the model {longest} positions", fix="Cut it into several rows.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < self.interface.vocabulary:
            raise BadInput(f"input_ids has an id that is not in the vocabulary of {self.interface.vocabulary}")


def _drawn(interface: Interface, length: int, seed: int, drawn: Drawn | None = None) -> Row:
    made = arrays(interface, Case("calibration", 1, length), seed, drawn)
    return {name: torch.from_numpy(value) for name, value in made.items()}


def _of_tokens(name: str, given: dict, tokens: torch.Tensor) -> torch.Tensor:
    """Another input [1, S]; only the segment of a token goes without saying."""
    if name not in given and name == "token_type_ids":
        return torch.zeros_like(tokens)
    if name not in given:
        raise BadInput(f"it has no {name}, which the model wants to know of each token")
    values = _integers(name, given[name])
    if values.shape != tokens.shape:
        raise BadInput(f"{name} has {values.shape[1]} entries for {tokens.shape[1]} tokens")
    return values


def _integers(name: str, values: Any) -> torch.Tensor:
    """A list as [1, S] int64."""
    if not isinstance(values, list) or not values or any(type(value) is not int for value in values):
        raise BadInput(f"{name} is no list of integers with at least one")
    return torch.tensor([values])


@contextmanager
def _named(where: str) -> Iterator[None]:
    """A BadInput raised inside gets its place."""
    try:
        yield
    except BadInput as error:
        raise BadInput(error.what, where=where, fix=error.fix) from error
