"""Kinds of routing: each file turns router logits into chosen experts and their weights.

To add one, add a file with a frozen dataclass derived from `Router`: `choose` is its meaning in traceable torch
ops, and `guesses` lists the parameters under which a traced routing subgraph might be of this kind. A guess is
never trusted: `fuse_routing` runs both on random logits and keeps what agrees.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch


@dataclass(frozen=True)
class Evidence:
    """What a traced routing subgraph shows on its face: E, K, and the constants and ops in it."""

    experts: int
    k: int
    tensors: tuple[tuple[int, ...], ...]
    ops: frozenset[str]
    topks: tuple[int, ...]
    numbers: frozenset[float]


@dataclass(frozen=True)
class SoftmaxForm:
    """The router is: the K largest logits; weights are their softmax over all E, or over the K when `over_chosen`."""

    over_chosen: bool
    scale: float


@dataclass(frozen=True)
class LogScores:
    """The router is: softmax over what `function` gives, times `scale`.

    `function(logits [T, E], *tensors)` -> log of a positive score [T, E], -inf for experts that were not chosen.
    """

    function: Callable[..., torch.Tensor]
    scale: float


@dataclass(frozen=True)
class Router(ABC):
    """A kind of routing with its parameters; `name` is how the graph and the reports call it."""

    name: ClassVar[str] = ""
    k: int

    @abstractmethod
    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [T, E], tensors of the router -> ids [T, K] int64, weights [T, K]."""

    @classmethod
    @abstractmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Router]:
        """Parameters under which `evidence` might be this kind, the likeliest first."""

    def scaled(self, factor: float) -> Router | None:
        """The same routing with weights times `factor`, or None when this kind has no such parameter."""
        return None

    def as_softmax(self) -> SoftmaxForm | None:
        """How a fused operator that routes by softmax top-k could do this routing, or None."""
        return None

    def as_log_scores(self) -> LogScores | None:
        """The routing as softmax over masked log scores, or None when its weights have no constant sum."""
        return None
