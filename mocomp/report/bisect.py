"""The report of `mocomp parity --bisect`, and of a comparison of two models."""

from __future__ import annotations

import dataclasses
from itertools import takewhile
from typing import Any

from mocomp.report.console import line, table
from mocomp.verify.between import Difference
from mocomp.verify.bisect import Bisection, Stage
from mocomp.verify.trail import BEFORE, OUTPUTS

WIDTH = 84
"""Characters that the columns of layers take at most."""


def as_json(found: Bisection) -> dict[str, Any]:
    """All of it as bisect.json holds it; infinite errors, which JSON has not, become the largest number there is."""
    return {
        "passed": found.passed,
        "inputs": found.inputs,
        "tolerance": found.tolerance.outputs,
        "first_pass": found.first_pass,
        "first_layer": found.first_layer,
        "words": found.words,
        "passes": [_stage(stage) for stage in found.passes],
        "artifact": _stage(found.artifact) if found.artifact is not None else {"error": 0.0, "layers": []},
        "notes": found.notes,
    }


def _stage(stage: Stage) -> dict[str, Any]:
    layers = [{k: _finite(v) for k, v in dataclasses.asdict(layer).items()} for layer in stage.layers]
    return {"name": stage.name, "error": _finite(stage.error), "layers": layers}


def _finite(value: Any) -> Any:
    return min(value, 1e30) if isinstance(value, float) else value


def difference_as_json(found: Difference) -> dict[str, Any]:
    """All of it, with the verdict's figures spelled out."""
    figures = {"passed": found.passed, "worst": found.worst, "agreement": found.agreement}
    data = dataclasses.asdict(found)
    for case in data["cases"]:
        case["errors"] = {name: _finite(error) for name, error in case["errors"].items()}
    return data | figures | {"worst": _finite(found.worst)}


def print_bisection(found: Bisection) -> None:
    """The culprit first, then the errors of some layers after each pass; passes behind which nothing differs share a row."""
    line(found.words, "green" if found.passed else "red")
    line(f"  on {found.inputs}; tolerance {found.tolerance.outputs:.0e}")
    names = _short(list(dict.fromkeys(layer.layer for stage in found.stages for layer in stage.layers)))
    shown = _columns(names, found.first_layer)
    rows: list[list[str]] = []
    for stage in found.stages:
        errors = {layer.layer: f"{layer.error:.1e}" for layer in stage.layers}
        first = "" if stage.first is None else names[stage.first.layer]
        row = [*(errors.get(name, "-") for name in shown), first]
        if rows and rows[-1][1:] == row and stage is not found.artifact:
            rows[-1][0] = f"{rows[-1][0].split(' .. ')[0]} .. {stage.name}"
        else:
            rows.append([f"  {stage.name}", *row])
    table(["  after", *(names[layer] for layer in shown), "" if found.passed else "first to leave it"], rows)
    for note in found.notes:
        line(f"  note: {note}")


def _columns(names: dict[str, str], first: str | None) -> list[str]:
    """As many of the layers as fit on a line: the last, and those around the first that leaves the tolerance."""
    layers = list(names)
    at = layers.index(first) if first in names else 1
    nearest = sorted(range(len(layers)), key=lambda i: (i not in (at, len(layers) - 1), abs(i - at)))
    width, kept = 0, []
    for i in nearest:
        width += len(names[layers[i]]) + 2
        if width <= WIDTH or len(kept) < 2:
            kept.append(i)
    return [layers[i] for i in sorted(kept)]


def _short(layers: list[str]) -> dict[str, str]:
    """Each layer without the modules that all of them are in."""
    around = [name.removeprefix(BEFORE).split(".")[:-2] for name in layers if name != OUTPUTS]
    shared = sum(1 for _ in takewhile(lambda parts: len(set(parts)) == 1, zip(*around, strict=False)))
    short = {name: name.removeprefix(BEFORE).split(".", shared)[-1] for name in layers if name != OUTPUTS}
    return {n: OUTPUTS if n == OUTPUTS else BEFORE * n.startswith(BEFORE) + short[n] for n in layers}


def print_difference(found: Difference) -> None:
    """The verdict first, then the cases; failures last, where they are seen."""
    verdict, style = ("parity passed", "green") if found.passed else ("parity failed", "red")
    line(
        f"{verdict}: {found.first} and {found.second} differ by {found.worst:.1e} (tolerance {found.tolerance.outputs:.0e})",
        style,
    )
    if found.agreement is not None:
        tokens = sum(layer.tokens for layer in found.layers)
        within = sum(layer.flips_within_margin for layer in found.layers)
        line(f"  same experts chosen for {found.agreement:.2%} of {tokens} tokens x layers ({within} apart by rounding)")
    rows = []
    for case in found.cases:
        top1 = "" if case.top1 is None else f"{case.top1:.1%}"
        kl = "" if case.kl is None else f"{max(case.kl, 0.0):.1e}"
        rows.append(
            [
                f"  {case.name}",
                f"{max(case.errors.values()):.1e}" if case.errors else "-",
                f"{case.clean} of {case.sequences}",
                top1,
                kl,
            ]
        )
    table(["  case", "largest error", "compared", "top-1", "KL"], rows)
    for note in found.notes:
        line(f"  note: {note}")
    for failure in found.failures[:12]:
        line(f"  failed: {failure}")
