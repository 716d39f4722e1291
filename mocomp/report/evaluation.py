"""The report of `mocomp eval`: how good an artifact is on data, beside its source."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from mocomp.report import versions
from mocomp.report.console import line, table


@dataclass
class Perplexity:
    """Of both models on the `tokens` of one modality, each predicted from those before it."""

    artifact: float
    reference: float
    tokens: int


@dataclass
class LayerAgreement:
    """Of the experts that the artifact chooses in a layer, the share that the reference chooses too."""

    layer: str
    agreement: float


@dataclass
class Evaluation:
    """The figures of an artifact beside a reference; what a kind of model has not is None, or empty.

    `another` names the reference where it is not the model that the artifact was made from. `perplexity` is by modality, `all`
    first. `top1` is the share of positions with the same likeliest token, or of rows with the same likeliest class; `kl` the KL
    divergence from the reference's distribution in nats; `error` the relative error of the first output. `cosine` is between
    both models' vectors of a row, of which `vectors` says what they are, and `retrieval` the share of the nearest rows that
    both find.
    """

    artifact: str
    reference: str
    another: str
    data: str
    kind: str
    seed: int
    rows: int = 0
    tokens: int = 0
    perplexity: dict[str, Perplexity] = field(default_factory=dict)
    top1: float | None = None
    kl: float | None = None
    error: float = 0.0
    layers: list[LayerAgreement] = field(default_factory=list)
    cosine: dict[str, float] | None = None
    retrieval: dict[str, float] | None = None
    vectors: str = ""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=versions)

    def as_json(self) -> dict[str, Any]:
        """All of it, as eval.json holds it; what is not a number is null, which is all that JSON has for it."""
        return _finite(dataclasses.asdict(self))


def _number(perplexity: float) -> str:
    return f"{perplexity:.3f}" if perplexity < 1e4 else f"{perplexity:.2e}"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_evaluation(found: Evaluation) -> None:
    """What was compared on what, and the figures that this kind of model has."""
    tokens = f", {found.tokens} tokens" if found.tokens else ""
    line(f"{found.kind}, {found.rows} rows of {found.data}{tokens}, against {found.another or 'the original'}")
    if found.perplexity:
        rows = [
            [f"  {name}", str(p.tokens), _number(p.artifact), _number(p.reference), f"{p.artifact / p.reference:.4f}"]
            for name, p in found.perplexity.items()
        ]
        table(["  perplexity", "tokens", "artifact", "reference", "ratio"], rows)
    told = [f"output off by {found.error:.2g}"]
    if found.top1 is not None and found.kl is not None:
        what = "token" if found.perplexity or found.kind == "generator" else "answer"
        told = [f"same likeliest {what} {found.top1:.2%}", f"KL {found.kl:.2g} nats", *told]
    line(f"  {', '.join(told)}")
    if found.layers:
        mean = sum(layer.agreement for layer in found.layers) / len(found.layers)
        least = min(found.layers, key=lambda layer: layer.agreement)
        line(f"  same experts chosen {mean:.2%}, least {least.agreement:.2%} in {least.layer}")
    if found.cosine is not None:
        line(f"  cosine {found.cosine['mean']:.6f}, least {found.cosine['min']:.6f}, of {found.vectors}")
    if found.retrieval is not None:
        line(f"  nearest of the other rows the same {found.retrieval['top1']:.2%}, ten nearest {found.retrieval['top10']:.2%}")
    for note in found.notes:
        line(f"  note: {note}")
