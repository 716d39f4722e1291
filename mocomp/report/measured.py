"""What of a report is measured, and so differs from run to run: all else of it is the same for the same command, inputs and
versions, byte for byte."""

from __future__ import annotations

from typing import Any

MEASURED = ("seconds", "memory", "latency", "tuning")
"""Keys of a report, and of what is in it, that hold times and memory. What `--tune` chooses follows from them too."""
OF_THESE = ("report.html",)
"""Files that show them."""


def without_measured(data: dict[str, Any]) -> dict[str, Any]:
    """A report, as it was read, without what is measured and the checksums of that."""
    left = _without(data)
    left.pop("sha256", None)
    for name in OF_THESE:
        left.get("files", {}).pop(name, None)
    return left


def _without(value: Any) -> Any:
    if isinstance(value, list):
        return [_without(item) for item in value]
    if isinstance(value, dict):
        return {name: _without(item) for name, item in value.items() if name not in MEASURED}
    return value
