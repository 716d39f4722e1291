"""Ways to run a mixture in ONNX Runtime: each file says one, as the body of a function in ONNX's own text form.

To add one, add a file with a class derived from `Way`. All ways of a mixture read the same weights as they lie in the
artifact, so that a graph can hold two of them, and take turns by the number of tokens, at the size of one.
Dimension letters: T tokens, E experts, K chosen per token, N = T K, H hidden, F expert width, R = F or 2F rows of w_in.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from mocomp.experts import Expert
from mocomp.ir.specs import parse


@dataclass(frozen=True)
class Layer:
    """What two mixtures share when they may run the same way: sizes, the kind of expert, and what else its operator is told.

    `inputs` are the names of the operator's inputs, "" for one that is left out; `shapes` and `types` (as ONNX's text has
    them) are of those that are weights; `attributes` is the text of its attributes.
    """

    operator: str
    experts: int
    chosen: int
    hidden: int
    width: int
    expert: str
    inputs: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    types: tuple[tuple[str, str], ...]
    attributes: str
    form: str = ""

    @property
    def kind(self) -> Expert:
        """Its experts, of which all are alike but for their weights."""
        return parse("mocomp.experts", "Expert", self.expert)

    @property
    def rows(self) -> int:
        """R, the rows of an expert's w_in."""
        return 2 * self.width if self.kind.gated else self.width

    @property
    def words(self) -> str:
        """How a report calls it."""
        form = f" in {self.form}" if self.form else ""
        return f"{self.experts} experts of {self.hidden} x {self.width}{form}, {self.chosen} chosen"

    def has(self, name: str) -> bool:
        """Whether the operator is given that input."""
        return name in self.inputs


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
        """Statements from x [T, H], logits [T, E] and the weights to `y` [T, H]."""


def activation(kind: Any, h: str, a: str, axis: int, halves: str) -> str:
    """Statements from `h`, whose `axis` holds gate and up in two `halves` where the expert is gated, to `a`.

    ONNX Runtime computes `silu` of slope alpha as QuickGelu, in one pass over memory.
    """
    if not kind.gated:
        return f"{a} = {PLAIN[kind.activation](h)}"
    limits = bool(kind.limit)
    lines = [f"{a}_gate_all, {a}_up_all = Split <axis = {axis}> ({h}, {halves})"]
    gate, up = f"{a}_gate_all", f"{a}_up_all"
    if limits:
        lines += [
            f"{a}_most = Constant <value_float = {float(kind.limit)}> ()",
            f"{a}_least = Constant <value_float = {-float(kind.limit)}> ()",
            f"{a}_gate = Min ({gate}, {a}_most)",
            f"{a}_up = Clip ({up}, {a}_least, {a}_most)",
        ]
        gate, up = f"{a}_gate", f"{a}_up"
    if kind.beta:
        lines += [f"{a}_beta = Constant <value_float = {float(kind.beta)}> ()", f"{a}_shifted = Add ({up}, {a}_beta)"]
        up = f"{a}_shifted"
    lines += [f"{a}_act = com.microsoft.QuickGelu <alpha = {float(kind.alpha)}> ({gate})", f"{a} = Mul ({a}_act, {up})"]
    return "\n".join(lines)


PLAIN = {
    "silu": lambda h: f"com.microsoft.QuickGelu <alpha = 1.0> ({h})",
    "gelu_tanh": lambda h: f'Gelu <approximate = "tanh"> ({h})',
    "relu": lambda h: f"Relu ({h})",
}
