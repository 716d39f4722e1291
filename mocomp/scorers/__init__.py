"""How the scores of experts come about: each file turns tokens, and what else it is given, into router logits.

To add one, add a file with a frozen dataclass derived from `Scorer`: `shapes` says what it reads, `scores` is its meaning
in traceable torch ops. Which experts are chosen by the scores is a router's: see `mocomp.routers`.
Dimension letters: H hidden, E experts, B sequences, S tokens of a sequence; [..] are the dimensions that tokens stand in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor


@dataclass(frozen=True)
class Reads:
    """What a scorer reads besides x [.., H], by name and in order.

    `given` are of each token: their last sizes, where () is a number of the token itself, such as its id. `weights` are
    those that were learned, with their shapes. `below` says, of a given that counts something, how many there are.
    """

    given: dict[str, tuple[int, ...]] = field(default_factory=dict)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)
    below: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Scorer(ABC):
    """A way to score `experts` experts for tokens of width `hidden`, with its parameters.

    `causal`: the scores of a token depend on that token alone; where they do not, tokens are [B, S, H] and those of a
    sequence see each other.
    """

    name: ClassVar[str] = ""
    causal: ClassVar[bool] = True
    hidden: int
    experts: int

    @property
    def columns(self) -> int:
        """How many logits a token has: one for each expert, where a kind says no other."""
        return self.experts

    @abstractmethod
    def reads(self) -> Reads:
        """What `scores` wants after x."""

    @abstractmethod
    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        """x [.., H], then what `reads` names, the given before the weights -> logits [.., E], or [.., columns]."""

    @classmethod
    def examples(cls) -> Iterator[Scorer]:
        """Instances on which what holds of every scorer is tested."""
        yield cls(16, 8)
