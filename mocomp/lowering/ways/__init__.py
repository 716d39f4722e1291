"""Ways to run a mixture in ONNX: each file says one, as the body of a function in ONNX's own text form.

To add one, add a file with a class derived from `Way`. All ways of a mixture read the same weights as they lie in the
artifact, so that a graph can hold two of them, and take turns by the number of tokens, at the size of one. What a way need not
know, a `Layer` says: how the experts of a token are told, and what an expert does between its two products.
Dimension letters: T tokens, E experts, K chosen per token, N = T K, H hidden, F expert width, R = F or 2F rows of w_in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import onnx

from mocomp.experts import Expert
from mocomp.ir.specs import parse


@dataclass(frozen=True)
class Layer(ABC):
    """What two mixtures share when they may run the same way: sizes, the kind of expert, and what they are given.

    `inputs` are the names of what is given, in order, "" for what is left out; `shapes` and `types` (as ONNX's text has them)
    are of those that are weights. `domain` is that of the operators in its ways that are not of the standard.
    """

    domain: ClassVar[str] = ""
    experts: int
    chosen: int
    hidden: int
    width: int
    expert: str
    inputs: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    types: tuple[tuple[str, str], ...]

    @property
    def kind(self) -> Expert:
        """Its experts, of which all are alike but for their weights."""
        return parse("mocomp.experts", "Expert", self.expert)

    @property
    def rows(self) -> int:
        """R, the rows of an expert's w_in."""
        return 2 * self.width if self.kind.gated else self.width

    @property
    def form(self) -> str:
        """The format of weights that are packed, "" for floats."""
        return ""

    @property
    def words(self) -> str:
        """How a report calls it."""
        form = f" in {self.form}" if self.form else ""
        return f"{self.experts} experts of {self.hidden} x {self.width}{form}, {self.chosen} chosen"

    def has(self, name: str) -> bool:
        """Whether it is given that input."""
        return name in self.inputs

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of the inputs of a function that runs it: what it is given."""
        return tuple(name for name in self.inputs if name)

    @property
    @abstractmethod
    def tokens(self) -> dict[str, str]:
        """What comes with the tokens, as name: type and shape."""

    @abstractmethod
    def choice(self) -> str:
        """Statements from what comes with the tokens to `ids` [T, K] int64 and `weights` [T, K]."""

    @abstractmethod
    def activated(self, h: str, a: str) -> str:
        """Statements from `h` [A, R, C], rows in the order of w_in, to `a` [A, F, C], for any A and C."""

    def functions(self, opset: int) -> list[onnx.FunctionProto]:
        """Those that `activated` calls."""
        return []


class Way(ABC):
    """One way; stateless."""

    name: ClassVar[str] = ""

    @abstractmethod
    def takes(self, layer: Layer) -> bool:
        """Whether it can run such a mixture."""

    def bytes(self, layer: Layer, tokens: int) -> int:
        """Memory that it takes beside weights and what goes in and out, roughly; what would not fit is not tried."""
        return 0

    @abstractmethod
    def body(self, layer: Layer, y: str) -> str:
        """Statements from what comes with the tokens, and the weights, to `y` [T, H]."""


def weighted_sum(z: str, y: str) -> str:
    """Statements from `z` [T, K, H] and `weights` [T, K] to `y` [T, H]; what has weight 0 is left out, even if it is NaN."""
    return f"""
        of_chosen = Constant <value = int64[1] {{1}}> ()
        of_rows = Constant <value = int64[1] {{2}}> ()
        weight_column = Unsqueeze (weights, of_rows)
        counts_for_all = Cast <to = 9> (weight_column)
        weighted = Mul ({z}, weight_column)
        no_part = Constant <value_float = 0.0> ()
        parts = Where (counts_for_all, weighted, no_part)
        {y} = ReduceSum <keepdims = 0> (parts, of_chosen)
    """
