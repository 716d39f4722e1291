"""What an input looks like, by its example, so that others like it can be drawn, also where the example is gone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Likeness:
    """Shape and type of an example, its smallest and largest value, its mean and standard deviation."""

    shape: tuple[int, ...]
    dtype: str
    low: float = 0.0
    high: float = 0.0
    mean: float = 0.0
    deviation: float = 0.0

    @classmethod
    def of(cls, example: np.ndarray) -> Likeness:
        """That of an array; values that are no finite numbers count as absent."""
        values = example.astype(np.float64).reshape(-1)
        values = values[np.isfinite(values)]
        if not values.size:
            return cls(example.shape, example.dtype.name)
        figures = (float(figure) for figure in (values.min(), values.max(), values.mean(), values.std()))
        return cls(example.shape, example.dtype.name, *figures)

    def draw(self, axes: Mapping[int, str], sizes: Mapping[str, int], random: np.random.Generator) -> np.ndarray:
        """An array like the example, with the dimensions that `axes` names of these sizes: whole numbers are uniform between
        its smallest and largest, booleans are either, floats are normal with its mean and deviation, none of them negative
        where none was."""
        shape = tuple(sizes[axes[i]] if i in axes else size for i, size in enumerate(self.shape))
        if self.dtype == "bool":
            return random.integers(0, 2, shape).astype(bool)
        if np.issubdtype(np.dtype(self.dtype), np.integer):
            return random.integers(int(self.low), int(self.high) + 1, shape).astype(self.dtype)
        made = self.mean + self.deviation * random.standard_normal(shape)
        return (np.abs(made) if self.low >= 0 else made).astype(self.dtype)
