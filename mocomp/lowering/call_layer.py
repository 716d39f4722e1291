"""A mixture as a call of a model-local function in standard operators: any expert, any router.

Dimension letters as in `lowering/ways`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import onnx
import onnx_ir as ir

from mocomp.experts import Expert
from mocomp.ir.specs import parse
from mocomp.lowering.branches import DOMAIN
from mocomp.lowering.exported_function import exported
from mocomp.lowering.ways import Layer

INPUTS = ("x", "ids", "weights", "w_in", "b_in", "w_out", "b_out")
"""Those of the function, in order; a bias that there is none of is left out of the call, and at the end of the function too."""


@dataclass(frozen=True)
class CallLayer(Layer):
    """Its experts are told by ids and weights. In w_in the gate rows come first, then the up rows, and what happens to them is
    the function `inner`, which is the expert's own `inner` exported: no kind of expert is unforeseen."""

    domain: ClassVar[str] = DOMAIN
    inner: str = "Inner"

    @property
    def parameters(self) -> tuple[str, ...]:
        return INPUTS if self.has("b_out") else INPUTS[:-1]

    @property
    def tokens(self) -> dict[str, str]:
        chosen = f"[T, {self.chosen}]"
        return {"x": f"float[T, {self.hidden}]", "ids": f"int64{chosen}", "weights": f"float{chosen}"}

    def choice(self) -> str:
        return ""

    def activated(self, h: str, a: str) -> str:
        return f"{a} = {DOMAIN}.{self.inner} ({h})"

    def functions(self, opset: int) -> list[onnx.FunctionProto]:
        return [inner_function(self.expert, self.rows, self.inner, opset)]


@cache
def inner_function(expert: str, rows: int, name: str, opset: int) -> onnx.FunctionProto:
    """h [A, R, C] -> a [A, F, C]: what an expert does between its products; tokens are columns."""
    kind: Expert = parse("mocomp.experts", "Expert", expert)
    return ir.to_proto(exported(lambda h: kind.inner(h, 1), [(None, rows, None)], ["h"], ["a"], name, opset))
