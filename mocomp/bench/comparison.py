"""Ratios: of the artifact to its baselines, and of a benchmark to an earlier one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mocomp.bench.subjects import OURS
from mocomp.errors import BadInput

KEYS = ("subject", "workload", "batch", "sequence", "past", "mix")
"""What makes two points of two benchmarks the same."""


def ratios(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The artifact's median divided by each baseline's, point by point."""
    own = {_key(point)[1:]: point["ms"]["median"] for point in points if point["subject"] == OURS}
    return [
        {"workload": point["workload"], "against": point["subject"], "ratio": own[_key(point)[1:]] / point["ms"]["median"]}
        for point in points
        if point["subject"] != OURS
    ]


def earlier(path: Path) -> dict[str, Any]:
    """A benchmark that was written before. Raises BadInput for what is none."""
    try:
        data = json.loads(path.read_text())
        for point in data["points"]:
            _ = _key(point), _spread(point), point["ms"]["median"] + 0.0
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"no benchmark: {type(error).__name__}: {error}", where=str(path), fix="Name a file that mocomp bench wrote."
        ) from error
    return data


def compare(points: list[dict[str, Any]], old: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points of both: the ratio of the medians, new to old, and whether the spreads overlap.

    `verdict` is same, slower or faster; the last two where they do not.
    """
    before = {_key(point): point for point in old}
    found = []
    for point in points:
        if (other := before.get(_key(point))) is None:
            continue
        ratio = point["ms"]["median"] / other["ms"]["median"]
        (low, high), (old_low, old_high) = _spread(point), _spread(other)
        within = low <= old_high and old_low <= high
        verdict = "same" if within else "slower" if ratio > 1 else "faster"
        told = {key: point[key] for key in KEYS}
        found.append({**told, "ratio": ratio, "within": within, "verdict": verdict})
    return found


def _key(point: dict[str, Any]) -> tuple[str, ...]:
    return tuple(json.dumps(point[key], sort_keys=True) for key in KEYS)


def _spread(point: dict[str, Any]) -> tuple[float, float]:
    ms = point["ms"]
    return ms.get("low", ms["p10"]) + 0.0, ms.get("high", ms["p90"]) + 0.0
