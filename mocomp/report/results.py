"""What later commands learn of an artifact, kept as JSON beside its report: bench.json, eval.json, usage.json, bisect.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mocomp.errors import BadInput
from mocomp.weights import disk

BENCH, EVAL, USAGE, BISECT = "bench.json", "eval.json", "usage.json", "bisect.json"


def save(directory: Path, name: str, data: dict[str, Any]) -> None:
    """Write one of them; what was there stays as it was until the new one is whole."""
    disk.replace_text(directory / name, json.dumps(data, indent=1) + "\n")


def load(directory: Path, name: str) -> dict[str, Any] | None:
    """One of them, None when its command was never run. Raises BadInput for what is not readable."""
    path = directory / name
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"not readable as JSON: {error}", where=str(path), fix="Run the command that wrote it again.") from error
    if not isinstance(data, dict):
        raise BadInput("no JSON object", where=str(path), fix="Run the command that wrote it again.")
    return data
