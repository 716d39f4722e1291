"""One table of tolerances, each with its reason. Errors are max |a - b| / max |b|."""

from __future__ import annotations

from dataclasses import dataclass

from mocomp.quant.formats import parse
from mocomp.targets import Artifact, Target


@dataclass(frozen=True)
class Tolerance:
    """`outputs` end to end, `experts` for one layer under the reference's own choice; `margin` is the distance between
    the k-th and the next score, relative to the largest, below which rounding may decide which expert is chosen."""

    outputs: float
    experts: float
    margin: float
    reason: str
    by_rounding: float = 0.01
    """Share of a layer's tokens whose choice rounding may decide; scores of a working router are seldom that close."""


TABLE = {
    ("onnxruntime", "float32"): Tolerance(
        outputs=1e-4,
        experts=1e-5,
        margin=1e-4,
        reason="float32 products summed in another order: about sqrt(width) * 6e-8 a layer, growing with depth; no "
        "step of this target rounds more than that",
    ),
    ("onnx", "float32"): Tolerance(
        outputs=1e-4,
        experts=1e-5,
        margin=1e-4,
        reason="float32 products summed in another order, as for onnxruntime; packed weights are unpacked to float32 "
        "before they are used",
    ),
    ("huggingface", "float32"): Tolerance(
        outputs=1e-4,
        experts=1e-5,
        margin=1e-4,
        reason="the same classes of transformers on the same weights; what differs is a cache that forgets nothing where the "
        "original keeps a window, so that sums may be of other lengths",
    ),
    ("onnxruntime", "int8 activations"): Tolerance(
        outputs=0.3,
        experts=6e-2,
        margin=0.1,
        reason="operators that round activations to 8 bits for each block: 1 to 3 % of the largest in one layer, measured; "
        "that the weights are the right ones is proven apart, bit for bit",
        by_rounding=0.25,
    ),
}


def _half(bits: int, words: str) -> Tolerance:
    """The tolerance of activations whose mantissas have so many bits."""
    step = 2.0 ** -(bits + 1)
    return Tolerance(outputs=32 * step, experts=8 * step, margin=16 * step, reason=words, by_rounding=0.05)


SHORT = {
    "float16": _half(
        10,
        "each operator rounds what it gives to 11 bits, 5e-4 of it; a layer of experts has three such steps, and a model adds "
        "those of its layers up as independent errors do. Measured of float16 graphs on the CPU provider, which rounds at the "
        "same places and sums in float32; not yet measured on a GPU",
    ),
    "bfloat16": _half(
        7,
        "as for float16 with 8 bits, 4e-3; not yet measured on a GPU, and no CPU provider computes it",
    ),
}
EMULATED = Tolerance(
    outputs=1e-4,
    experts=1e-5,
    margin=1e-4,
    reason="the weights of the artifact, read as float32 and computed with in float32: nothing but the order of sums differs",
)
TABLE |= {("onnxruntime", dtype): limit for dtype, limit in SHORT.items()}
TABLE |= {("tensorrt", dtype): limit for dtype, limit in SHORT.items()}
TABLE["tensorrt", "float32"] = Tolerance(
    outputs=1e-4,
    experts=1e-5,
    margin=1e-4,
    reason="float32 products summed in an order that is chosen by timing; not yet measured on a GPU",
)
TF32 = Tolerance(
    outputs=2e-3,
    experts=1e-3,
    margin=1e-3,
    reason="--tf32 allows products of numbers rounded to 11 bits; not yet measured on a GPU",
)


def tolerance_of(target: Target, artifact: Artifact) -> Tolerance:
    """The tolerance of an artifact: by its type, but that of float32 where it is emulated, and a wider one where its operators
    round activations whatever is asked of them."""
    of_experts = [parse(form) for name, form in artifact.formats.items() if name not in artifact.linears]
    if any(target.rounds_activations(form) for form in of_experts):
        return TABLE[target.name, "int8 activations"]
    if target.deployment.emulate:
        return EMULATED
    dtype = target.deployment.dtype
    return TF32 if target.deployment.tf32 and dtype == "float32" else TABLE[target.name, dtype]
