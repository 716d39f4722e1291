"""What the artifact consists of: files, weights by format, operators."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from mocomp.report.page import words
from mocomp.report.page.findings import Findings, has_weights
from mocomp.report.page.plots import Mark, Row, Strip, linear_scale

MOST = 14
"""Rows of a strip; what is smaller is summed up in one more."""


def sizes(findings: Findings) -> dict[str, Any]:
    """Strips of files and operators, and how many weights each format has."""
    artifact = findings.report["artifact"]
    parameters = findings.report["model"]["parameters"]
    written = has_weights(findings.report)
    rows = [("weights", words.size(artifact["weight_bytes"])), ("the same in float32", words.size(4 * parameters))]
    if written and parameters:
        rows.append(("bits for each parameter", f"{8 * artifact['weight_bytes'] / parameters:.2f}"))
    return {
        "files": _bars(_files(findings.directory), words.size, "file"),
        "operators": _bars(artifact["operators"], words.count, "operator") if artifact["operators"] else None,
        "facts": rows if written else [],
        "formats": Counter(artifact["formats"].values()).most_common(),
        "mixtures": len(artifact["mixtures"]),
    }


def _files(directory: Path) -> dict[str, int]:
    """Bytes of each file that belongs to the artifact: not those that tell of it."""
    told = {"mocomp.json", "bench.json", "eval.json", "usage.json", "bisect.json", "report.html"}
    found = {str(path.relative_to(directory)): path.stat().st_size for path in sorted(directory.rglob("*")) if path.is_file()}
    return {name: nbytes for name, nbytes in found.items() if name not in told and not name.startswith(".")}


def _bars(values: dict[str, int], said: Any, head: str) -> Strip:
    """The largest first."""
    ordered = sorted(values.items(), key=lambda pair: -pair[1])
    if len(ordered) > MOST:
        rest = ordered[MOST:]
        ordered = [*ordered[:MOST], (f"{len(rest)} others", sum(value for _, value in rest))]
    scale = linear_scale([value for _, value in ordered])
    rows = [Row(name, [Mark(scale.at(value), f"{name}: {said(value)}", "bar")], [said(value)]) for name, value in ordered]
    return Strip(rows, [], [""], head)
