"""One table of tolerances, each with its reason. Errors are max |a - b| / max |b|."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """`outputs` end to end, `experts` for one layer under the reference's own choice; `margin` is the distance between
    the k-th and the next score, relative to the largest, below which rounding may decide which expert is chosen."""

    outputs: float
    experts: float
    margin: float
    reason: str


TABLE = {
    ("onnxruntime", "float32"): Tolerance(
        outputs=1e-4,
        experts=1e-5,
        margin=1e-4,
        reason="float32 products summed in another order: about sqrt(width) * 6e-8 a layer, growing with depth; no "
        "step of this target rounds more than that",
    ),
}
