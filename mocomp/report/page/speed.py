"""Latency beside the peers, loading and memory; from `mocomp bench` where it ran, from the conversion otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mocomp.report.page import words
from mocomp.report.page.findings import Findings
from mocomp.report.page.plots import Mark, Row, Strip, linear_scale

OURS, EAGER = "mocomp", "torch eager"
COLOURS = 5
"""How many colours peers have before they are used again."""

Milliseconds = dict[str, dict[str, dict[str, Any]]]
"""Median, p10 and p90 by workload and subject."""


def speed(findings: Findings) -> dict[str, Any]:
    """Panels of latencies by workload, strips of loading and memory, and where the numbers come from."""
    measured, bench = milliseconds(findings), findings.bench
    subjects = list(dict.fromkeys(subject for panel in measured.values() for subject in panel))
    if bench is not None:
        subjects = list(dict.fromkeys([*bench["subjects"], *subjects]))
    colours = colours_of(subjects)
    known = {} if bench is None else {name: about for name, about in bench["subjects"].items() if "error" not in about}
    return {
        "measured": bench is not None,
        "machine": "" if bench is None else _machine(bench["machine"]),
        "legend": {name: colour for name, colour in colours.items() if any(name in panel for panel in measured.values())},
        "panels": [{"workload": name, "strip": _panel(panel, colours)} for name, panel in measured.items()],
        "peak": _bars(known, "peak_gb", colours, words.gigabytes),
        "load": _bars(known, "load_s", colours, words.duration),
        "absent": []
        if bench is None
        else [(name, about["error"]) for name, about in bench["subjects"].items() if "error" in about],
        "notes": [] if bench is None else words.sentences(bench.get("notes")),
        "remarks": [(name, about["words"]) for name, about in known.items() if about.get("words")],
    }


def milliseconds(findings: Findings) -> Milliseconds:
    """What was timed; mocomp first in each workload."""
    found: Milliseconds = {}
    if findings.bench is not None:
        for point in findings.bench["points"]:
            found.setdefault(workload_of(point), {})[point["subject"]] = point["ms"]
    else:
        latency = findings.report.get("latency") or {}
        for key, subject in (("artifact", OURS), ("original", EAGER)):
            for workload, ms in latency.get(key, {}).items():
                found.setdefault(workload, {})[subject] = ms
    return {name: dict(sorted(panel.items(), key=lambda pair: pair[0] != OURS)) for name, panel in found.items()}


def workload_of(point: dict[str, Any]) -> str:
    """What was run, with the mix of modalities where there is one and the workload does not say it."""
    mix = " + ".join(f"{share:.0%} {name}" for name, share in (point.get("mix") or {}).items())
    return f"{point['workload']}, {mix}" if mix and mix not in point["workload"] else point["workload"]


def speedups(findings: Findings) -> list[tuple[str, float]]:
    """(workload, how many times faster than eager PyTorch), in the order in which they were timed."""
    return [
        (workload, panel[EAGER]["median"] / panel[OURS]["median"])
        for workload, panel in milliseconds(findings).items()
        if OURS in panel and EAGER in panel
    ]


def colours_of(subjects: list[str]) -> dict[str, str]:
    """A colour's name for each subject: `own` for ours, `peer0` and on for others."""
    peers = [name for name in subjects if name != OURS]
    return {OURS: "own"} | {name: f"peer{i % COLOURS}" for i, name in enumerate(peers)}


def _machine(machine: dict[str, Any]) -> str:
    """What it was measured on."""
    threads = machine["threads"]
    return f"{machine['cpu']}, {threads} {'thread' if threads == 1 else 'threads'}"


def _panel(panel: dict[str, dict[str, Any]], colours: dict[str, str]) -> Strip:
    """One workload: a bar for each subject's median, with whiskers from p10 to p90, and its time divided by ours."""
    scale = linear_scale(ms.get("p90", ms["median"]) for ms in panel.values())
    ours = panel.get(OURS, {}).get("median")
    rows = []
    for subject, ms in panel.items():
        median, low, high = ms["median"], ms.get("p10", ms["median"]), ms.get("p90", ms["median"])
        spread = f"{words.milliseconds(median)}, p10 {words.figures(low)}, p90 {words.figures(high)}"
        title = f"{subject}: {spread}, {ms['runs']} runs" if "runs" in ms else f"{subject}: {spread}"
        mark = Mark(scale.at(median), title, "bar", colours[subject], scale.at(low), scale.at(high))
        ratio = "" if ours is None or subject == OURS else words.times(median / ours)
        rows.append(Row(subject, [mark], [words.figures(median), ratio]))
    return Strip(rows, scale.ticks(), ["ms", "÷ mocomp"])


def _bars(subjects: dict[str, dict[str, Any]], key: str, colours: dict[str, str], said: Callable[[float], str]) -> Strip | None:
    """A bar for each subject that has that number."""
    values = {name: about[key] for name, about in subjects.items() if about.get(key) is not None}
    if not values:
        return None
    scale = linear_scale(values.values())
    rows = [
        Row(name, [Mark(scale.at(value), f"{name}: {said(value)}", "bar", colours[name])], [said(value)])
        for name, value in values.items()
    ]
    return Strip(rows, scale.ticks(), [""])
