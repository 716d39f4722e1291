"""QMoE on activations as they are, for a mixture whose user allows them to be rounded: sometimes that is the faster one."""

from __future__ import annotations

import re
from typing import ClassVar

from mocomp.lowering.ways import Layer, Way

LEVEL = re.compile(r"accuracy_level = \d")


class FloatActivations(Way):
    """QMoE at accuracy level 0. Nothing is ever rounded further than was asked for."""

    name: ClassVar[str] = "float activations"

    def takes(self, layer: Layer) -> bool:
        return LEVEL.search(layer.attributes) is not None and "accuracy_level = 0" not in layer.attributes

    def body(self, layer: Layer, y: str) -> str:
        attributes = LEVEL.sub("accuracy_level = 0", layer.attributes)
        return f"{y} = com.microsoft.{layer.operator} <{attributes}> ({', '.join(layer.inputs)})"
