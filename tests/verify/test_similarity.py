"""Vectors of rows and their neighbours, beside what scikit-learn finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from mocomp.verify.similarity import Similarity, pooled


def neighbours_in_common(actual: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The same by scikit-learn."""
    found = {}
    for k in (1, 10):
        fitted = (NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors) for vectors in (actual, expected))
        lists = zip(*(neighbours.kneighbors(return_distance=False) for neighbours in fitted), strict=True)
        found[f"top{k}"] = float(np.mean([len({*a} & {*b}) / k for a, b in lists]))
    return found


def test_retrieval_agrees_with_scikit_learn_over_more_rows_than_are_compared_at_once():
    random = np.random.default_rng(0)
    actual = random.standard_normal((300, 16)).astype(np.float32)
    expected = actual + 0.3 * random.standard_normal((300, 16)).astype(np.float32)
    similarity = Similarity()
    for pair in zip(actual, expected, strict=True):
        similarity.add(*pair)
    found = similarity.retrieval()
    assert found == pytest.approx(neighbours_in_common(actual, expected)) and 0.1 < found["top1"] < 0.9


def test_equal_rows_are_equally_near():
    """Rounding alone decides which of two equal rows is found first."""
    rows = np.array([[1, 0], [0.9, 0.1], [0.9, 0.1], [0, 1]], np.float32)
    similarity = Similarity()
    for row in rows:
        similarity.add(row * np.float32(1 + 1e-7), row)
    similarity.actual[2] = similarity.actual[2] + np.float32(1e-7)
    assert similarity.retrieval() == {"top1": 1.0, "top10": 1.0}
    similarity.actual[1:3] = [rows[3], rows[3]]
    assert similarity.retrieval()["top1"] < 1.0


def test_two_rows_leave_nothing_to_rank():
    similarity = Similarity()
    for _ in range(2):
        similarity.add(np.ones(3), np.ones(3))
    assert similarity.retrieval() is None


def test_vectors_are_means_over_what_is_no_padding():
    output, mask = np.arange(12.0).reshape(1, 4, 3), torch.tensor([[0, 1, 1, 0]])
    assert pooled(output, mask)[0].tolist() == [4.5, 5.5, 6.5] and pooled(output)[0].tolist() == [4.5, 5.5, 6.5]
    assert pooled(output, torch.tensor([[1, 1, 0, 0]]))[0].tolist() == [1.5, 2.5, 3.5]
    assert pooled(output[:, 0], mask)[0].tolist() == [0, 1, 2] and pooled(np.ones((1, 2, 3, 4)))[0].tolist() == [1, 1]
