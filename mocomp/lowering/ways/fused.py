"""The operator that ONNX Runtime has for it: a task for each share of the experts, tokens gathered inside."""

from __future__ import annotations

from typing import ClassVar

from mocomp.lowering.ways import Layer, Way


class Fused(Way):
    """MoE or QMoE."""

    name: ClassVar[str] = "fused"

    def takes(self, layer: Layer) -> bool:
        return True

    def body(self, layer: Layer, y: str) -> str:
        return f"{y} = com.microsoft.{layer.operator} <{layer.attributes}> ({', '.join(layer.inputs)})"
