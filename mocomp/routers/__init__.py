"""Kinds of routing: each file turns router logits into chosen experts and their weights.

To add one, add a file with a frozen dataclass derived from `Router`: `choose` is its meaning in traceable torch
ops, `guesses` lists the parameters under which a routing that was found might be of this kind, and `examples` gives
instances to test. A guess is never trusted: who asks runs both on the same logits and keeps what agrees.

How logits come about is not a router's: see `mocomp.scorers`.
Dimension letters: T tokens, B sequences, S tokens of a sequence, E experts, K chosen per token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.errors import MocompError
from mocomp.registry import discover


class _Everything(frozenset):
    """A set in which everything is."""

    def __contains__(self, item: object) -> bool:
        return True

    def __iter__(self) -> Iterator[str]:
        return iter(("any",))


ANY_OPS: frozenset[str] = _Everything()
"""The ops of a routing that was measured and not traced, so that any op may be in it."""


@dataclass(frozen=True)
class Evidence:
    """What a routing shows on its face: E, K (the most experts that a token has), the shapes of its own tensors, and the
    ops and constants in it; `ops` is `ANY_OPS` where nobody has seen them.

    `loads` are pairs (tokens that were routed together, how many of them the busiest expert had) where routing was
    measured, and `sequence_loads` the same where tokens are taken to be routed by sequences.
    """

    experts: int
    k: int
    tensors: tuple[tuple[int, ...], ...]
    ops: frozenset[str]
    topks: tuple[int, ...]
    numbers: frozenset[float]
    loads: tuple[tuple[int, int], ...] = ()
    sequence_loads: tuple[tuple[int, int], ...] = ()

    @property
    def fractions(self) -> list[float]:
        """The numbers that may be a threshold on a share, smallest first; smaller ones are guards against 0."""
        return [number for number in sorted(self.numbers) if 1e-3 <= number < 1][:8]


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
class Example:
    """A router to test, for so many experts; `tensors` are the shapes of its own, where None is as many as there are
    tokens: [None, E] stands for [T, E], and for [B, S, E] where the router is `per_sequence`."""

    router: Router
    experts: int = 8
    tensors: tuple[tuple[int | None, ...], ...] = ()


@dataclass(frozen=True)
class Router(ABC):
    """A kind of routing with its parameters; `name` is how the graph and the reports call it.

    `fixed`: every token has exactly K experts. Where it is False, a weight of 0 says that an expert is not chosen; a
    token may have no expert, and no fused operator takes that.
    `causal`: what a token is given depends on its own logits alone, so that a cache does not change it.
    `per_sequence`: tokens of a sequence see each other and no others; logits are [B, S, E], and so are tensors that have a
    row for each token. Ids and weights are [B * S, K] all the same.
    `ordered`: tokens are served in their order, so that another order is another choice; their experts are one group.
    """

    name: ClassVar[str] = ""
    fixed: ClassVar[bool] = True
    causal: ClassVar[bool] = True
    per_sequence: ClassVar[bool] = False
    ordered: ClassVar[bool] = False
    k: int

    @abstractmethod
    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """logits [T, E] (with `columns` in place of E, if it says another), tensors of the router -> ids [T, K] int64,
        weights [T, K].

        An expert whose logit is -inf is never chosen as long as K others of the token are finite, so experts that stand
        in groups, one per modality (MoMa, Lin et al. 2024), are one router on masked logits. A kind for which this costs
        something has a field `masked` that asks for it.
        """

    @classmethod
    @abstractmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Router]:
        """Parameters under which `evidence` might be this kind, the likeliest first."""

    @classmethod
    def examples(cls) -> Iterator[Example]:
        """Instances on which what holds of every router is tested; a kind with parameters gives some of each."""
        yield Example(cls(2))

    def columns(self, experts: int) -> int:
        """How many logits a token has for so many experts."""
        return experts

    def scaled(self, factor: float) -> Router | None:
        """The same routing with weights times `factor`, or None when this kind has no such parameter."""
        return None

    def uncapped(self) -> Router | None:
        """The same routing where experts have room for every token, or None when this kind knows no room."""
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
        if logits.shape[-1] != self.columns(self.k):
            raise MocompError(f"{self.name} is for k={self.k} experts, the logits are of {logits.shape[-1]}")
        shares = self.shares(logits, *tensors).reshape(-1, self.k)
        return torch.arange(self.k, device=logits.device).expand_as(shares), shares

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Router]:
        """None, where a kind says no other: a traced graph shows K experts per token."""
        return iter(())

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield Example(cls(8))


def candidates(evidence: Evidence) -> Iterator[Router]:
    """All that the kinds guess: those first that give every token K experts by its own logits, as nearly all models do."""
    kinds = discover("mocomp.routers", "Router").values()
    for kind in sorted(kinds, key=lambda kind: (kind.per_sequence, not kind.causal, not kind.fixed)):
        yield from kind.guesses(evidence)


def places(is_open: torch.Tensor, factor: float, axis: int) -> torch.Tensor:
    """Whether a token may have an expert [.., E] -> for how many tokens along `axis` each expert has a place, before rounding.

    A token brings `factor` places, shared out among the experts that are open to it: T * factor / E where all are.
    """
    experts = is_open.sum(-1, keepdim=True).double()
    return torch.where(is_open, factor / experts, 0.0).sum(axis, keepdim=True)


def largest(scores: torch.Tensor, room: torch.Tensor, axis: int) -> torch.Tensor:
    """Whether each of `scores` is among the `room` largest along an axis; `room` is scores' shape with 1 there, or one number.

    What ties with the last is among them as well, so order does not matter; what is -inf never is.
    """
    ranked = torch.sort(scores, axis, descending=True).values
    shape = list(scores.shape)
    shape[axis] = 1
    last = ranked.gather(axis, (room - 1).clamp(min=0).expand(shape))
    return (scores >= last) & (room > 0) & (scores > float("-inf"))
