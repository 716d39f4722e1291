"""Inputs to prove a model on: those of the user, or generated ones.

Dimension letters: S tokens of a row.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from mocomp.calibration.data import Row, data_for
from mocomp.errors import BadInput
from mocomp.models.interface import Interface, is_per_token
from mocomp.models.source import Source
from mocomp.targets import Arrays
from mocomp.verify.inputs import Case, arrays, cases, longest_of, with_modality

MOST, ROWS = 2048, 32
"""Tokens, and rows, up to which a user's inputs are taken: all that a model makes of them is kept beside what another does."""
TOKENIZERS = ("tokenizer", "vocab", "spiece", "sentencepiece", "tekken")
"""How the names of the files begin that a tokenizer is made of."""


@dataclass
class Given:
    """Cases with their inputs; `words` says what they are, `notes` what about them the user should know."""

    cases: list[tuple[Case, Arrays]]
    words: str
    notes: list[str] = field(default_factory=list)


def given_for(source: Source, interface: Interface, file: str, texts: tuple[str, ...], seed: int) -> Given:
    """The rows of `file` (.npz, .safetensors or JSON lines) and `texts`; where there is neither, the cases that the kind of
    model calls for. A generator sees the first row once more in two calls, so that its cache is proven on it too.

    Raises BadInput for what the model cannot run on, and for text where there is no tokenizer.
    """
    if not file and not texts:
        drawn = with_modality(source.plan)
        found = cases(interface, longest_of(source.config, drawn))
        return Given([(case, arrays(interface, case, seed, drawn)) for case in found], f"generated cases, seed {seed}")
    given, rows = Given([], ", ".join([*([file] if file else []), *(["text of the command line"] if texts else [])])), []
    if file:
        data = data_for(source, interface, file, seed, source.plan)
        rows += [(f"row {i} of {Path(file).name}", row) for i, row in enumerate(data.rows, 1)]
        given.notes += data.notes
    for number, text in enumerate(texts, 1):
        rows.append((f"text {number}", _of_text(source, interface, text, number, seed)))
    kept = _within_reach(rows, interface)
    if len(kept) < len(rows):
        given.notes.append(f"the first {len(kept)} of {len(rows)} rows: no more than {MOST} tokens and {ROWS} rows are taken")
    given.cases = [_case(name, row, interface) for name, row in kept]
    length = given.cases[0][0].sequence
    if interface.kind == "generator" and length > 1:
        name, first = kept[0][0], length // 2
        given.cases.append((Case(f"{name}, in two calls", 1, length - first, past=first), given.cases[0][1]))
    return given


def _of_text(source: Source, interface: Interface, text: str, number: int, seed: int) -> Row:
    """The inputs for one text, as a line of a file gives them."""
    if "input_ids" not in interface.inputs:
        raise BadInput("the model reads images, and no text", where=f"--text {number}", fix="Give --inputs FILE.npz.")
    if not any(path.name.startswith(TOKENIZERS) for path in source.directory.iterdir()):  # transformers makes an empty one
        raise BadInput(
            f"text needs a tokenizer, and {source.directory} has none",
            where=f"--text {number}",
            fix="Give --inputs FILE with input_ids, or put the tokenizer's files beside config.json.",
        )
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "text.jsonl"
        path.write_text(json.dumps({"text": text}) + "\n")
        try:
            return data_for(source, interface, str(path), seed, source.plan).rows[0]
        except BadInput as error:
            raise BadInput(error.what, where=f"--text {number}", fix=error.fix) from error


def _within_reach(rows: list[tuple[str, Row]], interface: Interface) -> list[tuple[str, Row]]:
    """The first rows, as many as are taken; at least one."""
    kept, tokens = [], 0
    for name, row in rows[:ROWS]:
        tokens += _length(row, interface)
        if kept and tokens > MOST:
            break
        kept.append((name, row))
    return kept


def _case(name: str, row: Row, interface: Interface) -> tuple[Case, Arrays]:
    return Case(name, 1, _length(row, interface)), {n: v.numpy() for n, v in row.items() if n in interface.inputs}


def _length(row: Row, interface: Interface) -> int:
    """S; 1 for an image."""
    return next((value.shape[1] for name, value in row.items() if is_per_token(name) and name in interface.inputs), 1)
