"""Softmax top-k where an expert has room for so many tokens, and those that come too late go without.

GShard (Lepikhin 2021), Switch Transformer (Fedus 2022) and ST-MoE (Zoph 2022) as they infer, without the random second
expert of training, and the layers of fairseq, DeepSpeed, Tutel and Mesh TensorFlow: they differ in how room is counted,
who is served first, and whether weights are divided by their sum before or after tokens are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, product
from typing import ClassVar, Self

import torch
from torch import Tensor

from mocomp.routers import ANY_OPS, AnyNumber, Evidence, Example

ROUNDINGS = ("up", "down", "nearest", "each")
NORMALISED = ("before", "after", "")
Loads = tuple[tuple[int, int], ...]
"""(tokens that were routed together, how many of them the busiest expert had)."""
LARGEST_DENOMINATOR = 10**6
MOST_UNMEASURED = 20
"""How many are guessed where nobody has measured how many tokens experts had; there are thousands."""


@dataclass(frozen=True)
class Capacity(AnyNumber):
    """p = softmax(z); each token wants its `each` best experts, an expert serves the first c that want it, weights p.

    c = the larger of `minimum` and T * `factor` / E, which is rounded `up`, `down`, to the `nearest` (ties to even), or
    for `each` choice alone: `each` * floor(`factor` * ceil(T / E)). They are served by `order`: all first choices in the
    order of the tokens, then all second ones ("choice"), or token by token ("token").
    `normalize`: p is divided by the sum of the p that a token wants ("before" some are dropped), or of those that it got
    ("after"). A choice but the first is no choice where its p by the sum of the wanted is not above `threshold`.
    """

    name: ClassVar[str] = "capacity"
    causal: ClassVar[bool] = False
    ordered: ClassVar[bool] = True
    each: int = 1
    factor: float = 1.0
    rounding: str = "up"
    minimum: int = 0
    order: str = "choice"
    normalize: str = ""
    threshold: float = 0.0

    def shares(self, logits: Tensor, *tensors: Tensor) -> Tensor:
        wanted, weights = self.wishes(logits)
        kept = wanted & (self.places(wanted, weights) < self.capacity(logits))
        got = kept.any(-1)
        if self.normalize == "before":
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
        weights = torch.where(got, weights, 0.0)
        if self.normalize == "after":
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
        return torch.where(kept, weights[..., None], 0.0).sum(-2)

    def wishes(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits [.., T, E] -> which expert each choice is [.., T, K, E], its p [.., T, K]."""
        values, ids = torch.topk(logits, self.each, -1)
        weights = torch.softmax(logits, -1).gather(-1, ids)
        wish = values > float("-inf")
        if self.threshold:
            share = weights / weights.sum(-1, keepdim=True)
            wish = wish & ((share > self.threshold) | (torch.arange(self.each, device=ids.device) == 0))
        return wish[..., None] & (ids[..., None] == torch.arange(logits.shape[-1], device=ids.device)), weights

    def places(self, wanted: Tensor, weights: Tensor) -> Tensor:
        """The arguments are of `wishes` -> how many wishes for that expert are served before this one [.., T, K, E]."""
        if self.order == "token":
            served = wanted.flatten(-3, -2).long()
            return (served.cumsum(-2) - served).unflatten(-2, (-1, self.each))
        served = wanted.transpose(-3, -2).flatten(-3, -2).long()
        return (served.cumsum(-2) - served).unflatten(-2, (self.each, -1)).transpose(-3, -2)

    def capacity(self, logits: Tensor) -> Tensor:
        """logits [.., T, E] -> for how many tokens an expert has room, one number."""
        rows = logits[0] if self.per_sequence else logits
        return self.room(torch.ones_like(rows[:, 0]).double().sum())

    def room(self, tokens: Tensor) -> Tensor:
        """T, a float64 -> c, an int64. `factor` counts as the fraction that it is written as, so that 1.1 * 10 is 11."""
        ratio = Fraction(str(self.factor)).limit_denominator(LARGEST_DENOMINATOR)
        # numbers that are no integers are exported in float32, and would be off by more than float64 rounds
        if self.rounding == "each":
            room = self.each * ((tokens / self.k).ceil() * ratio.numerator / ratio.denominator).floor()
        else:
            wanted = tokens * ratio.numerator / (ratio.denominator * self.k)
            room = {"up": wanted.ceil, "down": wanted.floor, "nearest": wanted.round}[self.rounding]()
        return room.clamp(min=self.minimum).long()

    def uncapped(self) -> Self:
        return replace(self, factor=float(self.k), rounding="up", minimum=0)  # room for T

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[Self]:
        """Those that explain the loads that were measured: no expert had more, and the busiest was full at least once."""
        if evidence.ops is not ANY_OPS or evidence.tensors:
            return
        loads = evidence.sequence_loads if cls.per_sequence else evidence.loads
        yield from cls._all(evidence, loads) if loads else islice(cls._all(evidence, loads), MOST_UNMEASURED)

    @classmethod
    def _all(cls, evidence: Evidence, loads: Loads) -> Iterator[Self]:
        for each, threshold in choices(evidence):
            for room in rooms(evidence, each):
                if not cls(evidence.experts, each, *room).explains(loads):
                    continue
                # a threshold is on shares of the wanted, so that is what such codes weigh with (Mesh TensorFlow)
                for order, normalize in [("choice", "before")] if threshold else cls._ways(each):
                    yield cls(evidence.experts, each, *room, order, normalize, threshold)

    @classmethod
    def _ways(cls, each: int) -> Iterable[tuple[str, str]]:
        """(order, normalize) that differ for so many choices."""
        return product(("choice", "token"), NORMALISED) if each > 1 else [("choice", "")]

    def explains(self, loads: Loads) -> bool:
        """Whether the loads may come of this room."""
        if not loads:
            return True
        tokens, most = torch.tensor(loads, dtype=torch.float64).T
        return int((self.room(tokens) - most).min()) == 0

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(cls(8)), Example(cls(8, 1, 0.0, "up", 3)))
        yield Example(cls(8, 2, 1.5, "down", 2, "token", "after"))
        yield Example(cls(8, 2, 1.0, "each", 0, "choice", "before"))
        yield Example(cls(8, 3, 2.1, "nearest", 0, "choice", "before", 0.2))


@dataclass(frozen=True)
class CapacitySequence(Capacity):
    """The same with T the tokens of one sequence, and room in an expert for so many of each sequence [B, S, E]."""

    name: ClassVar[str] = "capacity_sequence"
    per_sequence: ClassVar[bool] = True


@dataclass(frozen=True)
class BatchPriority(Capacity):
    """As `capacity`, where the tokens that matter most are served first (V-MoE, Riquelme 2021, section 4): "choice" and "token"
    count tokens in the order of their largest p, and not of their places.

    The paper scores a token by the largest of its weights or by their sum: here the largest. Where two tokens score alike, the
    paper is silent: the earlier one is served first.
    """

    name: ClassVar[str] = "batch_priority"

    def places(self, wanted: Tensor, weights: Tensor) -> Tensor:
        by_rank = torch.sort(weights[..., 0], dim=-1, descending=True, stable=True).indices
        rank = torch.sort(by_rank, -1).indices
        places = super().places(_rows(wanted, by_rank), weights)
        return _rows(places, rank)

    @classmethod
    def _ways(cls, each: int) -> Iterable[tuple[str, str]]:
        return product(("choice",), NORMALISED if each > 1 else ("",))

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(cls(8)), Example(cls(8, 2, 0.7, "nearest", 0, "choice", "before")))
        yield Example(cls(8, 2, 0.0, "up", 3, "token", "after"))


def choices(evidence: Evidence) -> Iterator[tuple[int, float]]:
    """How many experts a token wants, at least those that it had, and the threshold for all but the first."""
    yield evidence.k, 0.0
    if evidence.k == 1 and evidence.experts > 1:
        yield 2, 0.0
        yield 2, 1.0  # the second is never taken, and weighs in the sum all the same
    yield from ((max(evidence.k, 2), threshold) for threshold in evidence.fractions)


def rooms(evidence: Evidence, each: int) -> Iterator[tuple[float, str, int]]:
    """(factor, rounding, minimum), those with numbers that were seen first; else those of papers and published layers."""
    seen = [number for number in sorted(evidence.numbers) if 1e-2 <= number <= 2 * evidence.experts]
    factors = list(dict.fromkeys((*seen, 1.0, 2.0, 1.25)))
    busiest = (max((most for _, most in loads), default=0) for loads in (evidence.loads, evidence.sequence_loads))
    minima = list(dict.fromkeys((0, *(int(n) for n in (*seen, *evidence.topks, *busiest) if n == int(n)), 4)))
    by_tokens = list(dict.fromkeys((m * f, rounding) for f, rounding, m in product(factors, ROUNDINGS[:3], (each, 1))))
    yield from ((factor, rounding, 0) for factor, rounding in by_tokens)
    yield from ((0.0, "up", minimum) for minimum in minima if minimum)
    yield from ((factor, "each", minimum) for factor, minimum in product(factors, minima))
    yield from ((factor, rounding, minimum) for (factor, rounding), minimum in product(by_tokens, minima) if minimum)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values [.., T, K, E] in the order of `index` [.., T] of tokens."""
    return values.gather(-3, index[..., None, None].expand(values.shape))
