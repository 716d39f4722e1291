"""How often experts are chosen: a heat map of layers x experts for each modality, and what pruning would do.

Dimension letters: L layers, E experts.
"""

from __future__ import annotations

from typing import Any

from mocomp.report.page import words
from mocomp.report.page.plots import Mark, Row, Strip, Tick, linear_scale

LEVELS = (0.02, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0)
"""Lower ends of the shades, as multiples of an even share of the tokens; below the first nothing is drawn."""


def usage(found: dict[str, Any]) -> dict[str, Any]:
    """Heat maps, one for each modality, dead and duplicate experts by layer, and pruning."""
    layers = found["layers"]
    pattern, labels = words.shortened([layer["layer"] for layer in layers])
    experts = max((layer["experts"] for layer in layers), default=1)
    return {
        "data": found["data"],
        "tokens": words.count(found["tokens"]),
        "pattern": pattern or "layer",
        "experts": experts,
        "height": _row_height(len(layers)),
        "ticks": _expert_ticks(experts),
        "levels": LEVELS,
        "notes": words.sentences(found.get("notes")),
        "maps": [
            {"modality": modality, "rows": [_row(layer, label, modality) for layer, label in zip(layers, labels, strict=True)]}
            for modality in found["modalities"]
        ],
        "dead": [(layer["layer"], layer["dead"]) for layer in layers if layer["dead"]],
        "duplicates": [
            {"layer": layer["layer"], "experts": pair["experts"], "error": words.error(pair["error"])}
            for layer in layers
            for pair in layer["duplicates"]
        ],
        "pruning": _pruning(found.get("pruning", [])),
    }


def _row(layer: dict[str, Any], label: str, modality: str) -> dict[str, Any]:
    """One layer: a path for each shade, in units of one expert, and the layer in words."""
    share = layer["share"][modality]
    even = 1 / max(layer["experts"], 1)
    shades: dict[int, list[int]] = {}
    for expert, part in enumerate(share):
        level = sum(part >= lower * even for lower in LEVELS)
        if level:
            shades.setdefault(level, []).append(expert)
    busiest = max(range(len(share)), key=share.__getitem__)
    told = layer["concentration"].get(modality, {})
    said = [f"busiest is expert {busiest} with {words.percent(share[busiest])}"]
    said += [f"entropy {told['entropy']:.2f} of 1"] if told.get("entropy") is not None else []
    said += [f"{len(layer['dead'])} dead"] if layer["dead"] else []
    return {
        "label": label,
        "title": f"{layer['layer']}, {modality}: {', '.join(said)}",
        "experts": layer["experts"],
        "paths": [(level, _path(experts)) for level, experts in sorted(shades.items())],
        "dead": _path(layer["dead"]),
        "top": words.percent(told["top"]) if told.get("top") is not None else "",
    }


def _path(experts: list[int]) -> str:
    """A line over each of these experts, runs of neighbours as one: experts 0, 1 and 3 are `M0 .5h2M3 .5h1`."""
    runs: list[list[int]] = []
    for expert in sorted(experts):
        if runs and expert == runs[-1][0] + runs[-1][1]:
            runs[-1][1] += 1
        else:
            runs.append([expert, 1])
    return "".join(f"M{start} .5h{length}" for start, length in runs)


def _row_height(layers: int) -> int:
    """Pixels of a row: large where there are few."""
    return 34 if layers <= 6 else 22 if layers <= 24 else 14


def _expert_ticks(experts: int) -> list[Tick]:
    """Numbers of experts under the middle of their columns, at most nine."""
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024) if experts / step <= 8 or step == 1024)
    return [Tick(round(100 * (i + 0.5) / experts, 2), str(i)) for i in range(0, experts, step)]


def _pruning(choices: list[dict[str, Any]]) -> Strip | None:
    """What each number of experts left would save, as a bar, and cost."""
    if not choices:
        return None
    scale = linear_scale(choice["bytes_saved"] / 1e6 for choice in choices)
    rows = []
    for choice in choices:
        saved = words.size(choice["bytes_saved"])
        mark = Mark(scale.at(choice["bytes_saved"] / 1e6), f"saves {saved}", "bar")
        rows.append(
            Row(f"{choice['experts']} left", [mark], [saved, words.percent(choice["error"]), words.percent(choice["moved"])])
        )
    return Strip(rows, [], ["saved", "output off by", "weight moved"], "experts per layer")
