"""How far apart two results are, in figures."""

from __future__ import annotations

import numpy as np

LOWEST = np.finfo(np.float32).min
FORBIDDEN = -3e4
"""Nobody's score, and representable in every type: what a model forbids with LOWEST is below it in 16 bits, too."""


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """max |a - b| / max |b|; infinite where a number is missing or, on either side, is not one.

    The lowest number there is stands for "never" (the image tokens that Chameleon does not say); it must be at the same
    places, and would hide every error if it counted as a number.
    """
    if actual.shape != expected.shape or not (np.isfinite(actual).all() and np.isfinite(expected).all()):
        return float("inf")
    if expected.size == 0:
        return 0.0
    never = expected == LOWEST
    if (actual[never] > FORBIDDEN).any() or (actual[~never] == LOWEST).any():
        return float("inf")
    actual, expected = (np.where(never, 0.0, array) for array in (actual, expected))
    largest = float(np.abs(expected).max())
    difference = float(np.abs(actual - expected).max())
    return difference / largest if largest else difference


def distribution(actual: np.ndarray, expected: np.ndarray) -> tuple[float, float]:
    """(share of positions with the same likeliest token, mean KL(expected || actual) in nats)."""
    p, q = (logits - logits.max(-1, keepdims=True) for logits in (expected.astype(np.float64), actual.astype(np.float64)))
    p, q = (logits - np.log(np.exp(logits).sum(-1, keepdims=True)) for logits in (p, q))
    kl = (np.exp(p) * (p - q)).sum(-1)
    return float((actual.argmax(-1) == expected.argmax(-1)).mean()), float(kl.mean())
