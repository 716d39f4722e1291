"""The first screen: whether the artifact is proven, and the five numbers that people ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mocomp.report.page import words
from mocomp.report.page.findings import Findings, has_weights
from mocomp.report.page.plots import Tick, log_scale
from mocomp.report.page.speed import EAGER, OURS, speedups


@dataclass(frozen=True)
class Tile:
    """One number of the first screen: what it is, the number, and a line or two about it; a command where it is missing."""

    name: str
    label: str
    value: str
    words: list[str]
    command: str = ""


def verdict(findings: Findings) -> dict[str, Any]:
    """Headline, sentence, tone (good, bad, open), ruler of errors and tiles."""
    report = findings.report
    return _headline(report) | {
        "runs": has_weights(report),
        "model": report["model"],
        "target": report["target"]["target"],
        "opset": report["target"].get("opset"),
        "ruler": _ruler(report["parity"]),
        "warning": _warning(findings),
        "costs": [_cost(quality) for quality in report["quality"][:1]],
        "notes": report["notes"] + (report["parity"] or {}).get("notes", []),
        "tiles": [_error(report), _speed(findings), _weights(report), _memory(findings)],
    }


def _headline(report: dict[str, Any]) -> dict[str, Any]:
    parity = report["parity"]
    if parity is None:
        why = "Parity was not asked for."
        if not has_weights(report):
            why = "A graph without weights has no numbers to prove."
        return {"tone": "open", "headline": "Not proven", "sentence": why, "failures": []}
    cases, worst, tolerance = len(parity["cases"]), parity["worst"], parity["tolerance"]["outputs"]
    if not parity["passed"]:
        sentence = f"The artifact does not compute what the original computes: {len(parity['failures'])} checks failed."
        return {"tone": "bad", "headline": "Parity failed", "sentence": sentence, "failures": parity["failures"]}
    room = f", {tolerance / worst:,.0f} times below the tolerance" if 0 < worst < tolerance / 2 else ""
    original = "the original with the quantised weights" if report["quality"] else "the original"
    sentence = f"Over {cases} cases no output is further than {words.error(worst)} from {original}{room}."
    tokens = sum(layer["tokens"] for layer in parity["layers"])
    if tokens:
        sentence += f" The same experts were chosen for {words.percent(parity['agreement'])} of {tokens:,} tokens × layers."
    return {"tone": "good", "headline": "Parity passed", "sentence": sentence, "failures": []}


def _ruler(parity: dict[str, Any] | None) -> dict[str, Any] | None:
    """Every case's error on a line, with the tolerance."""
    if parity is None:
        return None
    errors = {case["name"]: max(case["errors"].values()) for case in parity["cases"]}
    tolerance = parity["tolerance"]["outputs"]
    scale = log_scale([*errors.values(), tolerance * 10])
    return {
        "marks": [Tick(scale.at(error), f"{name}: {words.error(error)}") for name, error in errors.items()],
        "limit": Tick(scale.at(tolerance), f"tolerance {tolerance:.0e}"),
        "ticks": scale.ticks(),
    }


def _warning(findings: Findings) -> str:
    """What a bisection found after the proof, if it found anything."""
    if findings.bisect is None or findings.bisect["passed"]:
        return ""
    return f"On {findings.bisect['inputs']}: {findings.bisect['words']}"


def _cost(quality: dict[str, Any]) -> str:
    """What quantisation costs, in a sentence."""
    told = [f"experts off by {words.percent(quality['experts_error'])}"] if quality["layers"] else []
    told.append(f"output off by {words.percent(quality['error'])}")
    if quality["top1"] is not None:
        told.append(f"same likeliest token {words.percent(quality['top1'])}")
    if quality["perplexity"] is not None:
        told.append(f"perplexity {quality['perplexity_float']:.3f} → {quality['perplexity']:.3f}")
    name = f"{quality['format']} {quality['algorithm']}".strip() or "Quantised"
    return f"{name}, on {quality['data']}: {', '.join(told)}."


def _error(report: dict[str, Any]) -> Tile:
    parity = report["parity"]
    if parity is None:
        return Tile("error", "Largest error", "not measured", [], command="mocomp parity DIR" if has_weights(report) else "")
    said = [f"tolerance {parity['tolerance']['outputs']:.0e}"]
    if parity["layers"]:
        experts = max(layer["experts_error"] for layer in parity["layers"])
        said.append(f"experts alone {words.error(experts)}")
    return Tile("error", "Largest error", words.error(parity["worst"]), said)


def _speed(findings: Findings) -> Tile:
    found = speedups(findings)
    if not found:
        return Tile("speed", "Speed-up", "not timed", [], command="mocomp bench DIR")
    (workload, ratio), *others = found
    said = [f"{'' if ratio >= 1 else 'of the speed of '}{'over ' if ratio >= 1 else ''}eager PyTorch at {workload}"]
    if others:
        said.append(", ".join(f"{words.times(other)} at {name}" for name, other in (others[0], others[-1])[: len(others)]))
    return Tile("speed", "Speed-up", words.times(ratio), said)


def _weights(report: dict[str, Any]) -> Tile:
    nbytes, parameters = report["artifact"]["weight_bytes"], report["model"]["parameters"]
    counted = f"{words.count(parameters)} parameters"
    if not parameters or not has_weights(report):
        return Tile("size", "Weights", "none", [counted, "not written"])
    said = [f"{words.percent(nbytes / (4 * parameters))} of float32", counted]
    return Tile("size", "Weights", words.size(nbytes), said)


def _memory(findings: Findings) -> Tile:
    subjects = (findings.bench or {}).get("subjects", {})
    ours, eager = (subjects.get(name, {}).get("peak_gb") for name in (OURS, EAGER))
    if ours is not None:
        said = ["peak when running", *([] if eager is None else [f"eager PyTorch {words.gigabytes(eager)}"])]
        return Tile("memory", "Memory", words.gigabytes(ours), said)
    memory = findings.report["memory"]
    peak = max(memory.values())
    above = f"{words.gigabytes(peak - memory['imports'])} above the imports" if "imports" in memory else ""
    return Tile("memory", "Memory", words.gigabytes(peak), ["peak of the conversion", *([above] if above else [])])
