"""What the artifact is worth on data, what quantisation cost, and how the ways to run a mixture were timed."""

from __future__ import annotations

from typing import Any

from mocomp.report.page import words
from mocomp.report.page.findings import Findings
from mocomp.report.page.plots import Mark, Row, Strip, linear_scale


def quality(findings: Findings) -> dict[str, Any]:
    """Receipts of quantisation, and the timings behind `--tune`."""
    report = findings.report
    return {"costs": [_cost(cost) for cost in report["quality"]], "tuning": _tuning(report.get("tuning"))}


def evaluation(found: dict[str, Any]) -> dict[str, Any]:
    """The figures of `mocomp eval` as (name, value), perplexities and the agreement of each layer."""
    facts = [
        ("same likeliest token", words.percent(found["top1"]) if found.get("top1") is not None else ""),
        ("KL to the original", words.error(max(found["kl"], 0.0)) if found.get("kl") is not None else ""),
        ("output off by", words.error(found["error"]) if found.get("error") is not None else ""),
    ]
    if found.get("cosine"):
        facts.append(("cosine, mean and least", f"{found['cosine']['mean']:.6f}, {found['cosine']['min']:.6f}"))
    if found.get("retrieval"):
        facts += [(f"same neighbours, {key}", words.percent(value)) for key, value in found["retrieval"].items()]
    tokens = f" ({words.count(found['tokens'])} tokens)" if found["tokens"] else ""
    return {
        "data": found["data"],
        "amount": f"{words.count(found['rows'])} rows{tokens}",
        "facts": [(name, value) for name, value in facts if value],
        "perplexity": [
            {"modality": name, "artifact": f"{pair['artifact']:.4f}", "reference": f"{pair['reference']:.4f}"}
            | {"change": words.drift(pair["artifact"] / pair["reference"])}
            for name, pair in (found.get("perplexity") or {}).items()
        ],
        "layers": _agreement(found.get("layers") or []),
        "notes": words.sentences(found.get("notes")),
    }


def _agreement(layers: list[dict[str, Any]]) -> Strip | None:
    """The share of tokens that chose the original's experts, by layer."""
    if not layers:
        return None
    pattern, labels = words.shortened([layer["layer"] for layer in layers])
    scale = linear_scale([1 / 1.04])
    rows = [
        Row(
            label,
            [Mark(scale.at(layer["agreement"]), words.percent(layer["agreement"]), "bar")],
            [words.percent(layer["agreement"])],
        )
        for label, layer in zip(labels, layers, strict=True)
    ]
    return Strip(rows, [], ["same experts"], pattern or "layer")


def _cost(cost: dict[str, Any]) -> dict[str, Any]:
    """One receipt of quantisation as a row: what it is, and its figures."""
    figures = {
        "experts off": words.percent(cost["experts_error"]) if cost["layers"] else "",
        "same experts": words.percent(cost["agreement"]) if cost["layers"] else "",
        "output off": words.percent(cost["error"]),
        "KL": "" if cost["kl"] is None else words.error(max(cost["kl"], 0.0)),
        "top-1": "" if cost["top1"] is None else words.percent(cost["top1"]),
        "perplexity": "" if cost["perplexity"] is None else f"{cost['perplexity_float']:.3f} → {cost['perplexity']:.3f}",
        "ms": ", ".join(f"{name} {words.figures(ms)}" for name, ms in cost["ms"].items()),
    }
    return {"name": f"{cost['format']} {cost['algorithm']}".strip(), "data": cost["data"], "figures": figures}


def _tuning(tuning: dict[str, Any] | None) -> list[dict[str, Any]]:
    """A table for each shape of mixture: milliseconds by token count and way, the chosen one marked."""
    shapes = []
    for shape in (tuning or {}).get("layers", []):
        ways = list(dict.fromkeys(timing["way"] for timing in shape["timings"]))
        timed = {(timing["tokens"], timing["way"]): words.figures(timing["ms"]["median"]) for timing in shape["timings"]}
        rows = []
        for tokens in sorted({tokens for tokens, _ in timed}):
            chosen = _way_at(tokens, shape["chosen"])
            cells = [{"ms": timed.get((tokens, way), ""), "chosen": way == chosen} for way in ways]
            rows.append({"tokens": tokens, "cells": cells})
        shapes.append({"shape": shape["shape"], "layers": len(shape["layers"]), "ways": ways, "rows": rows})
    return shapes


def _way_at(tokens: int, turns: list[dict[str, Any]]) -> str:
    """The way that runs at so many tokens: the first turn that takes them; one for 0 takes all that are left."""
    return next((turn["way"] for turn in turns if not turn["tokens"] or tokens <= turn["tokens"]), turns[-1]["way"])
