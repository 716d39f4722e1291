"""The report of `mocomp usage`: which experts real tokens go to, on a heat map of layers x experts.

Dimension letters: E experts, K chosen, R experts that a modality can reach.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from rich.text import Text

from mocomp.report.console import line, size, table

SHADES = "▁▂▃▄▅▆▇█"
"""From an expert that has a token to the busiest of its row; the height says what the colour says, where there is none."""
COLOURS = (60, 67, 73, 79, 114, 149, 184, 220)
"""Those shades in the 256 colours of a terminal, from blue to yellow; readable on light and dark."""
NONE = "·"
WIDEST = 64
"""Experts on one line; the maps of modalities stand beside each other as long as they fit, and a wider one is cut."""


@dataclass
class Duplicates:
    """Two experts of a layer that compute the same, up to a relative `error` of what they give for real tokens."""

    experts: list[int]
    error: float


@dataclass
class Concentration:
    """How unevenly a modality's weight is spread over the R experts that it can reach.

    `entropy` is 1 for an even spread and 0 for a single expert, `gini` 0 for an even one and near 1 for a single expert;
    `top` is the share of the K busiest.
    """

    entropy: float
    gini: float
    top: float


@dataclass
class LayerUsage:
    """One mixture: by modality, tokens [E] sent to each expert and the share [E] of all weight that it was given.

    `steps` tell for each expert of the mixture `after` which experts here the same tokens chose next: `3:17 5:2` is 17 times
    expert 3 and twice expert 5, counted for each pair of a token's choices. There are none after nothing.
    """

    layer: str
    experts: int
    chosen: int
    tokens: dict[str, list[int]]
    share: dict[str, list[float]]
    dead: list[int]
    concentration: dict[str, Concentration]
    duplicates: list[Duplicates] = field(default_factory=list)
    after: str = ""
    steps: list[str] = field(default_factory=list)


@dataclass
class Pruning:
    """What leaving `experts` in each layer, the most used ones, would save and cost: bytes of the checkpoint, the relative
    error (root mean square over layers) of what the routed experts give on the data, and the share of weight that moves."""

    experts: int
    bytes_saved: int
    error: float
    moved: float
    layers: dict[str, float] = field(default_factory=dict)


@dataclass
class UsageReport:
    """All layers, and what pruning would save and cost."""

    source: str
    data: str
    tokens: int
    modalities: list[str]
    layers: list[LayerUsage]
    pruning: list[Pruning] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """What usage.json holds."""
        return dataclasses.asdict(self)


def print_usage(report: UsageReport) -> None:
    """The heat map, then the experts that stand out, then what pruning would save and cost."""
    line(f"usage of experts: {report.tokens} tokens of {report.data}")
    widest = max(layer.experts for layer in report.layers)
    together = [report.modalities] if widest * len(report.modalities) <= WIDEST else [[name] for name in report.modalities]
    for names in together:
        _print_map(report, names)
    line(f"  {NONE} no token, {SHADES[0]} to {SHADES[-1]} by share of the layer's weight; K busiest: theirs of all weight")
    for layer in report.layers:
        if layer.dead:
            line(f"  dead on this data: {layer.layer}: {_listed(layer.dead)}")
        for alike in _alike(layer.duplicates):
            error = max(pair.error for pair in layer.duplicates if pair.experts[0] in alike)
            line(f"  compute the same: {layer.layer}: {_listed(alike)} (outputs differ by {error:.1e})")
    if report.pruning:
        rows = [[f"  {p.experts}", size(p.bytes_saved), f"{p.error:.1%}", f"{p.moved:.1%}"] for p in report.pruning]
        table(["  experts left in each layer", "saved", "their output off", "weight moved"], rows)
    for note in report.notes[:4]:
        line(f"  note: {note}")


def heat_map(tokens: list[int], share: list[float]) -> list[Text]:
    """A character for each expert, in colour."""
    busiest = max([*share, 1e-30])
    return [_cell(count, part / busiest) for count, part in zip(tokens, share, strict=True)]


def _cell(tokens: int, height: float) -> Text:
    if not tokens:
        return Text(NONE, style="dim")
    shade = min(int(height * len(SHADES)), len(SHADES) - 1)
    return Text(SHADES[shade], style=f"color({COLOURS[shade]})")


def _print_map(report: UsageReport, names: list[str]) -> None:
    rows = []
    for layer in report.layers:
        spread = [_spread(layer.concentration[name]) for name in names]
        told = [str(layer.experts), str(layer.chosen), *(word for s in spread for word in s)]
        for first in range(0, layer.experts, WIDEST):
            cut = slice(first, first + WIDEST)
            shown = [Text().join(heat_map(layer.tokens[name], layer.share[name])[cut]) for name in names]
            label = f"    experts from {first}" if first else f"  {layer.layer}"
            rows.append([label, *shown, *([""] * len(told) if first else told)])
    words = [word if name == "all" else f"{name}: {word}" for name in names for word in ("entropy", "K busiest")]
    table(["  layer", *("experts" if name == "all" else name for name in names), "E", "K", *words], rows, left=1 + len(names))


def _alike(pairs: list[Duplicates]) -> list[list[int]]:
    """Experts that are duplicates of each other, as sets in place of pairs."""
    sets: list[set[int]] = []
    for pair in pairs:
        touched = [alike for alike in sets if alike & set(pair.experts)]
        sets = [alike for alike in sets if alike not in touched] + [set(pair.experts).union(*touched)]
    return [sorted(alike) for alike in sets]


def _spread(concentration: Concentration) -> tuple[str, str]:
    return f"{concentration.entropy:.2f}", f"{concentration.top:.0%}"


def _listed(experts: list[int]) -> str:
    shown = ", ".join(map(str, experts[:16]))
    return shown if len(experts) <= 16 else f"{shown} and {len(experts) - 16} more"
