"""JSON that came with a checkpoint: read only when it is a file of its own directory and of a size that fits into memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mocomp.errors import BadInput
from mocomp.weights.own_files import own_file

LARGEST = 32 << 20
"""Bytes; parsed they take about twenty times as much. The index of 90,000 tensors has 9 MB."""
AGAIN = "Copy or download the file again."


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises BadInput for what is none, in another encoding than UTF-8, too large or too deep."""
    size = own_file(path.parent, path.name).stat().st_size
    if size > LARGEST:
        raise BadInput(f"it has {size:,} bytes, and {LARGEST:,} are read at most", where=str(path), fix=AGAIN)
    found = parse_object(path.read_bytes(), str(path))
    if not isinstance(found, dict):
        raise BadInput("not a JSON object", where=str(path), fix=AGAIN)
    return found


def parse_object(raw: bytes, where: str) -> Any:
    """What JSON text means. Raises BadInput for what is none, and for an object that has a key twice."""
    try:
        return json.loads(raw.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError as error:
        raise BadInput("not readable as JSON: it is nested too deeply", where=where, fix=AGAIN) from error
    except ValueError as error:
        raise BadInput(f"not readable as JSON: {error}", where=where, fix=AGAIN) from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"{twice!r} is there twice")
    return found
