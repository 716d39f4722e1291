"""How alike two models see the data: the cosine between what they make of a row, and which rows each finds nearest.

Dimension letters: R rows, S sequence, D width of a vector.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

TIE = 1e-6
"""Similarities no further apart are the same: which of two equal rows comes first is nobody's merit."""
TOGETHER = 256
"""Rows that are compared with all others at once."""


def pooled(output: np.ndarray, mask: Tensor | None = None) -> tuple[np.ndarray, str]:
    """(one vector [D] of the output of one row, how it was made).

    The output is [1, D], or [1, S, D], of which the mean over those tokens is taken that are not padding, `mask` [1, S]; of
    [1, D, ...] the mean over the rest.
    """
    if output.ndim == 2:
        return output[0], "as it is"
    if output.ndim > 3:
        return output[0].reshape(output.shape[1], -1).mean(-1), "mean over places"
    there = mask[0].numpy().astype(bool) if mask is not None and mask.shape == output.shape[:2] else slice(None)
    return output[0][there].mean(0), "mean over tokens"


class Similarity:
    """Collects a vector of each row, a model's and the reference's, which is all that is kept of it."""

    def __init__(self) -> None:
        self.actual: list[np.ndarray] = []
        self.expected: list[np.ndarray] = []

    def add(self, actual: np.ndarray, expected: np.ndarray) -> None:
        """The vectors [D] of one row."""
        self.actual.append(_unit(actual))
        self.expected.append(_unit(expected))

    def cosine(self) -> dict[str, float]:
        """`mean` and `min` over rows of the cosine between a row's two vectors."""
        cosines = np.array([float(a @ b) for a, b in zip(self.actual, self.expected, strict=True)])
        return {"mean": float(cosines.mean()), "min": float(cosines.min())}

    def retrieval(self, most: int = 10) -> dict[str, float] | None:
        """Each row as a query over all others: the share of those that the model ranks among its first that the reference ranks
        there too, of the first one (`top1`) and of the first ten. None for fewer than three rows, which leave no choice."""
        rows = len(self.actual)
        if rows < 3:
            return None
        actual, expected = np.stack(self.actual), np.stack(self.expected)
        shares = {1: 0.0, most: 0.0}
        for start in range(0, rows, TOGETHER):
            of_model, of_reference = (_to_others(vectors, start) for vectors in (actual, expected))
            for k in shares:
                shares[k] += float(_overlap(of_model, of_reference, min(k, rows - 1)).sum())
        return {f"top{k}": share / rows for k, share in shares.items()}


def _unit(vector: np.ndarray) -> np.ndarray:
    wide = vector.astype(np.float64)
    return (wide / max(float(np.linalg.norm(wide)), 1e-300)).astype(np.float32)


def _to_others(vectors: np.ndarray, start: int) -> np.ndarray:
    """Cosines [TOGETHER, R] of some rows with all, that with itself the least there is."""
    found = vectors[start : start + TOGETHER] @ vectors.T
    own = np.arange(len(found))
    found[own, start + own] = -np.inf
    return found


def _overlap(actual: np.ndarray, expected: np.ndarray, k: int) -> np.ndarray:
    """The share [Q] of the k nearest by `actual` [Q, R] that are no further, by `expected`, than the k-th nearest there."""
    nearest = np.argpartition(-actual, k - 1, axis=-1)[:, :k]
    last = -np.partition(-expected, k - 1, axis=-1)[:, k - 1 : k]
    return (np.take_along_axis(expected, nearest, -1) >= last - TIE).mean(-1)
