"""The pipeline as a picture: phases with their time and memory, and what each pass left of the graph."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import Any

import mocomp
from mocomp.report.page import words
from mocomp.report.page.findings import Findings
from mocomp.report.recognised import Recognised

PASSES = Path(mocomp.__file__).parent / "passes"


def flow(findings: Findings) -> dict[str, Any]:
    """Phases, the mixtures of a module, and a row for each pass with the nodes of the graph after it."""
    report = findings.report
    seconds, memory = report["seconds"], report["memory"]
    whole = sum(seconds.values()) or 1.0
    return {
        "phases": [
            {"name": name, "seconds": spent, "share": max(spent / whole, 0.004), "memory": memory.get(name)}
            for name, spent in seconds.items()
        ],
        "seconds": whole,
        "ends": _ends(report),
        "recognised": [Recognised(**one).words() for one in report["recognised"]],
        "steps": _steps(report),
        "target": report["target"]["target"],
    }


def _ends(report: dict[str, Any]) -> list[dict[str, str]]:
    """The stations from source to verdict, with what each gave."""
    parity, files = report["parity"], report["source_files"]
    passes = report["passes"]
    changed = sum(1 for step in passes if step["changed"])
    proof = "not asked for" if parity is None else "passed" if parity["passed"] else "failed"
    read = f"{words.size(sum(files.values()))} of weights" if files else "no weights read"
    return [
        {"name": "source", "words": report["model"]["class"], "more": read, "tone": ""},
        {
            "name": "trace",
            "words": words.duration(report["seconds"].get("trace", 0.0)),
            "more": "one graph, no data",
            "tone": "",
        },
        {"name": "passes", "words": f"{changed} of {len(passes)} changed it", "more": _shrunk(passes), "tone": ""},
        {"name": "lower", "words": f"{report['artifact']['nodes']:,} nodes", "more": report["target"]["target"], "tone": ""},
        {"name": "parity", "words": proof, "more": f"{len(parity['cases'])} cases" if parity else "", "tone": proof},
    ]


def _shrunk(passes: list[dict[str, Any]]) -> str:
    return f"{passes[0]['nodes']:,} → {passes[-1]['nodes']:,} nodes" if passes else ""


def _steps(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Each pass, then the artifact that came of them; `width` is percent of the largest graph."""
    passes = report["passes"]
    largest = max([step["nodes"] for step in passes] + [report["artifact"]["nodes"]], default=1) or 1
    steps, before = [], None
    for step in passes:
        fewer = None if before is None else step["nodes"] - before
        about = {"width": 100 * step["nodes"] / largest, "difference": fewer, "about": summary(step["name"])}
        steps.append(step | about | {"options": {name: value for name, value in step["options"].items() if value}})
        before = step["nodes"]
    return steps


@cache
def summary(name: str) -> str:
    """What a pass says of itself, up to its first empty line; its file is read and not imported, which would cost torch."""
    path = PASSES / f"{Path(name).name}.py"
    if not path.is_file():
        return ""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef) and any(isinstance(base, ast.Name) and base.id == "Pass" for base in node.bases):
            return re.sub(" +-> +", " → ", (ast.get_docstring(node) or "").split("\n\n")[0])
    return ""
