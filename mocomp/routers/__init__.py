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

from mocomp.errors import MocompError


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
    """A kind of routing with its parameters; `name` is how the graph and the reports call it.

    `fixed`: every token has exactly K experts. Where it is False, a weight of 0 says that an expert is not chosen; a
    token may have no expert, and no fused operator takes that.
    `causal`: what a token is given depends on its own logits alone, so that a cache does not change it.
    """

    name: ClassVar[str] = ""
    fixed: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    k: int

    @abstractmethod
    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [T, E], tensors of the router -> ids [T, K] int64, weights [T, K].

        An expert whose logit is -inf is never chosen as long as K others of the token are finite, so experts that stand
        in groups, one per modality (MoMa, Lin et al. 2024), are one router on masked logits. A kind for which this costs
        something has a field `masked` that asks for it.
        """

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


@dataclass(frozen=True)
class AnyNumber(Router):
    """A router under which a token has any number of experts, from none to all: K is E, and `shares` says which."""

    fixed: ClassVar[bool] = False

    @abstractmethod
    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        """logits [T, E], tensors of the router -> weights [T, E], 0 for experts that are not chosen."""

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if logits.shape[-1] != self.k:
            raise MocompError(f"{self.name} is for k={self.k} experts, the logits are of {logits.shape[-1]}")
        return torch.arange(self.k, device=logits.device).expand_as(logits), self.shares(logits, *tensors)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Router]:
        """None: a traced graph shows K experts per token."""
        return iter(())
