"""Everything that is needed to make the artifact again: the command, every option, the source's files, the versions."""

from __future__ import annotations

import json
import shlex
from typing import Any

from mocomp.report.page import words
from mocomp.report.page.findings import Findings

OF_THIS_RUN = ("force", "print_after")
"""Options that change nothing about what is made."""


def repeat(findings: Findings) -> dict[str, Any]:
    """The command, and tables of (name, value)."""
    report = findings.report
    return {
        "command": command(report["source"], report["options"]),
        "options": _shown(report["options"]),
        "source": report["source"],
        "files": [_file(name, about) for name, about in report["source_files"].items()],
        "hashed": any(isinstance(about, dict) for about in report["source_files"].values()),
        "mocomp": report["versions"].get("mocomp", ""),
        "versions": _shown(report["versions"]),
        "target": _shown(report["target"]),
    }


def conditions(bench: dict[str, Any]) -> dict[str, Any]:
    """Under which a benchmark ran, as tables of (name, value)."""
    when = {"when": bench["when"]} if bench.get("when") else {}
    return {"machine": _shown(_flat(bench["machine"])), "settings": _shown(_flat(when | bench["settings"]))}


def command(source: str, options: dict[str, Any]) -> list[str]:
    """The command line that makes it again, an option and its value in one part; DIR stands for the directory. Every value
    that is set is spelled out, so that another version with other defaults makes the same."""
    parts = [["mocomp", "convert"], [source], ["-o", "DIR"]]
    for name, value in ({"target": options["target"]} | options).items():
        flag = f"--{name.replace('_', '-')}"
        if name in OF_THIS_RUN or not value:
            continue
        values = value if isinstance(value, list) else [value]
        parts += [[flag] if item is True else [flag, str(item)] for item in values]
    return [shlex.join(part) for part in parts]


def _file(name: str, about: Any) -> tuple[str, str, str]:
    """(name, size, hash); a report holds either the size alone or both."""
    if isinstance(about, dict):
        return name, words.size(about["size"]), str(about.get("sha256", ""))
    return name, words.size(about), ""


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Mappings inside, such as versions, beside the rest."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _shown(values: dict[str, Any]) -> list[tuple[str, str]]:
    """Names as people write them, values as text; what is not set shows a dash."""
    return [(name.replace("_", " "), _text(value)) for name, value in values.items()]


def _text(value: Any) -> str:
    if value is None or value in ("", []):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else json.dumps(value)
