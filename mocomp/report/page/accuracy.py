"""Parity by case and by layer, on a logarithmic axis with the tolerance, and the culprit that a bisection named."""

from __future__ import annotations

import math
from typing import Any

from mocomp.report.page import words
from mocomp.report.page.findings import Findings
from mocomp.report.page.plots import Mark, Row, Strip, Tick, log_scale

LARGEST = 1e30
"""What bisect.json says for an error that is no number, since JSON has none such."""


def accuracy(findings: Findings) -> dict[str, Any]:
    """Strips of errors, by case and by layer; None where parity was not asked for."""
    parity = findings.report["parity"]
    if parity is None:
        return {"cases": None}
    tolerance = parity["tolerance"]
    return {
        "cases": _cases(parity),
        "layers": _layers(parity),
        "tolerance": f"{tolerance['outputs']:.0e}",
        "reason": words.sentences([tolerance["reason"]]),
        "seed": parity["seed"],
    }


def bisection(found: dict[str, Any]) -> dict[str, Any]:
    """The error after each pass, and by layer where it first left the tolerance or else in the artifact."""
    tolerance = found["tolerance"]
    stages = found["passes"] + ([{"name": "artifact"} | found["artifact"]] if found["artifact"]["layers"] else [])
    left = next((step for step in stages if step["name"] == found["first_pass"] and not step["error"] <= tolerance), None)
    shown = left or stages[-1]
    names = [layer["layer"] for layer in shown["layers"]]
    pattern, labels = words.shortened(names)
    culprit = names.index(found["first_layer"]) if found["first_layer"] in names else None
    steps = [(step["name"], step["error"]) for step in stages]
    layers = [(label, layer["error"]) for label, layer in zip(labels, shown["layers"], strict=True)]
    return {
        "passed": found["passed"],
        "words": found["words"],
        "inputs": found["inputs"],
        "notes": words.sentences(found.get("notes")),
        "passes": _errors(steps, tolerance, None if left is None else stages.index(left), "error after"),
        "layers": _errors(layers, tolerance, culprit, pattern or "layer") if layers else None,
        "where": f"after {shown['name']}" if shown in found["passes"] else "in the artifact",
    }


def _cases(parity: dict[str, Any]) -> Strip:
    tolerance = parity["tolerance"]["outputs"]
    scale = log_scale([error for case in parity["cases"] for error in case["errors"].values()] + [tolerance * 10])
    rows = []
    for case in parity["cases"]:
        worst = max(case["errors"].values())
        marks = [
            Mark(scale.at(error), f"{name}: {words.error(error)}", colour="bad" if not error <= tolerance else "own")
            for name, error in case["errors"].items()
        ]
        top1 = "" if case["top1"] is None else words.percent(case["top1"])
        kl = "" if case["kl"] is None else words.error(max(case["kl"], 0.0))
        cells = [words.error(worst), f"{case['clean']} of {case['sequences']}", top1, kl]
        rows.append(Row(case["name"], marks, cells, culprit=not worst <= tolerance))
    columns = ["largest error", "without a flip", "top-1", "KL"]
    return Strip(rows, scale.ticks(), columns, "case", Tick(scale.at(tolerance), f"tolerance {tolerance:.0e}"))


def _layers(parity: dict[str, Any]) -> Strip | None:
    if not parity["layers"]:
        return None
    tolerance = parity["tolerance"]["experts"]
    scale = log_scale([layer["experts_error"] for layer in parity["layers"]] + [tolerance * 10])
    pattern, labels = words.shortened([layer["layer"] for layer in parity["layers"]])
    rows = []
    for label, layer in zip(labels, parity["layers"], strict=True):
        worst, tokens = layer["experts_error"], max(layer["tokens"], 1)
        within = not worst <= tolerance
        marks = [Mark(scale.at(worst), f"experts off by {words.error(worst)}", colour="bad" if within else "own")]
        rounding = f" ({layer['flips_within_margin']} by rounding)" if layer["flips_within_margin"] else ""
        agreement = words.percent(1 - layer["flips"] / tokens) + rounding
        cells = [words.error(worst), agreement, f"{layer['reached']} of {layer['experts']}"]
        rows.append(Row(label, marks, cells, title=layer["layer"], culprit=within or layer["flips"] > 0))
    columns = ["experts' error", "same experts", "reached"]
    limit = Tick(scale.at(tolerance), f"tolerance {tolerance:.0e}")
    return Strip(rows, scale.ticks(), columns, pattern or "layer", limit)


def _errors(named: list[tuple[str, float]], tolerance: float, culprit: int | None, head: str) -> Strip:
    """Named errors against one tolerance; `culprit` is the number of the first that left it."""
    errors = [error if error < LARGEST else math.inf for _, error in named]
    scale = log_scale([*errors, tolerance * 10])
    rows = [
        Row(
            name,
            [Mark(scale.at(error), words.error(error), colour="bad" if not error <= tolerance else "own")],
            [words.error(error)],
            culprit=i == culprit,
        )
        for i, ((name, _), error) in enumerate(zip(named, errors, strict=True))
    ]
    return Strip(rows, scale.ticks(), ["error"], head, Tick(scale.at(tolerance), f"tolerance {tolerance:.0e}"))
