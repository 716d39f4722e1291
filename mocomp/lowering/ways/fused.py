"""The operator that ONNX Runtime has for it: a task for each share of the experts, tokens gathered inside."""

from __future__ import annotations

from typing import ClassVar

from mocomp.lowering.operator_layer import OperatorLayer
from mocomp.lowering.ways import Layer, Way


class Fused(Way):
    """MoE or QMoE."""

    name: ClassVar[str] = "fused"

    def takes(self, layer: Layer) -> bool:
        return isinstance(layer, OperatorLayer)

    def body(self, layer: Layer, y: str) -> str:
        assert isinstance(layer, OperatorLayer)
        return layer.call(y)
