"""Which experts a router chose, and how near the choice was to another.

Dimension letters: T tokens, E experts, K chosen per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from mocomp.routers import Router


@dataclass
class Choice:
    """ids [T, K]; `gap` [T] is the distance of the K-th score to the next, relative to the token's largest, None where the
    scores are not known."""

    ids: np.ndarray
    gap: np.ndarray | None = None


def choice_of(scores: np.ndarray, k: int, by: np.ndarray | None = None) -> Choice:
    """The k largest of scores [T, E]; `by` [T, E], where it is another, are the scores that decided which they are."""
    ids = np.argpartition(-scores, k - 1, axis=-1)[:, :k]
    return Choice(ids, gap_of(scores if by is None else by, k))


def gap_of(scores: np.ndarray, k: int) -> np.ndarray:
    """scores [T, E] -> the gap [T] of `Choice`; infinite where no other expert could have been chosen."""
    if scores.shape[1] <= k or not len(scores):
        return np.full(len(scores), np.inf)
    ordered = -np.sort(-scores, axis=-1)
    scale = np.abs(np.where(np.isfinite(ordered), ordered, 0.0)).max(-1)
    with np.errstate(invalid="ignore"):
        gap = ordered[:, k - 1] - ordered[:, k]
    return np.where(np.isnan(gap), 0.0, gap) / np.where(scale > 0, scale, 1.0)


def differing(a: Choice, b: Choice) -> np.ndarray:
    """The tokens [T] for which the two did not choose the same experts."""
    if a.ids.shape != b.ids.shape:
        return np.ones(len(a.ids), bool)
    return (np.sort(a.ids, -1) != np.sort(b.ids, -1)).any(-1)


def excusable(differs: np.ndarray, choices: Sequence[Choice], margin: float) -> np.ndarray:
    """Those of the tokens [T] that differ where rounding may decide: within the margin by what either side knows of it.

    Where no side knows its scores all are; how many there may be of them is for the caller to judge.
    """
    gaps = [choice.gap for choice in choices if choice.gap is not None and len(choice.gap) == len(differs)]
    return differs & np.any([gap <= margin for gap in gaps], axis=0) if gaps else differs


class _LargestOf(TorchFunctionMode):
    """Remembers what the k largest were last taken of."""

    def __init__(self, k: int):
        super().__init__()
        self.k, self.scores = k, None

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func is torch.topk and args[1] == self.k:
            self.scores = args[0]
        return func(*args, **(kwargs or {}))


def scores_of(router: Router, logits: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """What a router takes the k largest of [T, E], in its own reference; its logits where it takes them of nothing."""
    with _LargestOf(router.k) as seen:
        router.choose(logits, *tensors)
    same = seen.scores is not None and seen.scores.shape == logits.shape
    found = seen.scores if same else logits
    return found.reshape(-1, found.shape[-1])  # type: ignore[union-attr]
