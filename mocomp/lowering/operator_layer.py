"""A mixture that an operator of ONNX Runtime runs, MoE or QMoE, and what other ways to run it need to know of that operator.

Dimension letters as in `lowering/ways`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from mocomp.lowering.contrib import DOMAIN
from mocomp.lowering.ways import Layer


@dataclass(frozen=True)
class OperatorLayer(Layer):
    """Its experts are told by logits: the K largest, weighed by their softmax. In w_in the rows of gate and up take turns.

    `inputs` are those of the operator, `attributes` is the text of its attributes.
    """

    domain: ClassVar[str] = DOMAIN
    operator: str = "MoE"
    attributes: str = ""
    bits: int = 32

    @property
    def form(self) -> str:
        return f"int{self.bits}" if self.bits < 32 else ""

    @property
    def tokens(self) -> dict[str, str]:
        return {"x": f"float[T, {self.hidden}]", "logits": f"float[T, {self.experts}]"}

    def call(self, y: str) -> str:
        """The statement that has the operator do it."""
        return f"{y} = {self.domain}.{self.operator} <{self.attributes}> ({', '.join(self.inputs)})"

    def choice(self) -> str:
        return f"""
            k = Constant <value = int64[1] {{{self.chosen}}}> ()
            top, ids = TopK <axis = -1> (logits, k)
            weights = Softmax <axis = -1> (top)
        """

    def activated(self, h: str, a: str) -> str:
        if not self.kind.gated:
            return f"{a} = {PLAIN[self.kind.activation](h)}"
        return f"""
            {a}_column = Constant <value = int64[1] {{2}}> ()
            {a}_halves = Constant <value = int64[2] {{1, 1}}> ()
            {a}_pairs_shape = Constant <value = int64[4] {{0, {self.width}, 2, 0}}> ()
            {a}_h = Unsqueeze ({h}, {a}_column)
            {a}_pairs = Reshape ({a}_h, {a}_pairs_shape)
            {_gated(self.kind, f"{a}_pairs", f"{a}_gated", f"{a}_halves")}
            {a} = Squeeze ({a}_gated, {a}_column)
        """


def _gated(kind: Any, pairs: str, a: str, halves: str) -> str:
    """Statements from `pairs` [A, F, 2, C] to `a` [A, F, 1, C]. To ONNX Runtime `silu` of slope alpha is QuickGelu, in one pass
    over memory."""
    lines = [f"{a}_gate_all, {a}_up_all = Split <axis = 2> ({pairs}, {halves})"]
    gate, up = f"{a}_gate_all", f"{a}_up_all"
    if kind.limit:
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
    "identity": lambda h: f"Identity ({h})",
}
"""The activations of `onnxruntime_ops.ACTIVATIONS`."""
