"""QMoE on activations as they are, for a mixture whose user allows them to be rounded: sometimes that is the faster one."""

from __future__ import annotations

import dataclasses
import re
from typing import ClassVar

from mocomp.lowering.operator_layer import OperatorLayer
from mocomp.lowering.ways import Layer, Way

LEVEL = re.compile(r"accuracy_level = \d")


class FloatActivations(Way):
    """QMoE at accuracy level 0. Nothing is ever rounded further than was asked for."""

    name: ClassVar[str] = "float activations"

    def takes(self, layer: Layer) -> bool:
        text = layer.attributes if isinstance(layer, OperatorLayer) else ""
        return LEVEL.search(text) is not None and "accuracy_level = 0" not in text

    def body(self, layer: Layer, y: str) -> str:
        assert isinstance(layer, OperatorLayer)
        return dataclasses.replace(layer, attributes=LEVEL.sub("accuracy_level = 0", layer.attributes)).call(y)
