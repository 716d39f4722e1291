"""The rules of TensorRT for quantised weights, each kept and each broken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from mocomp.capability.tensorrt import graph_gaps


@dataclass(frozen=True)
class Scaled:
    """One DequantizeLinear: type and shape of its input, shape of its scales."""

    kind: str = "INT8"
    shape: tuple[int, ...] = (2, 6, 32)
    scales: tuple[int, ...] = (2, 6, 2)
    block: int = 16
    zero: int | None = None
    typed: bool = True

    def model(self) -> ir.Model:
        types = {name: getattr(TensorProto, self.kind) for name in ("x", "z")} | {"s": TensorProto.FLOAT}
        shapes = {"x": self.shape, "s": self.scales, "z": self.scales}
        inputs = ["x", "s"] if self.zero is None else ["x", "s", "z"]
        attributes = {"axis": 0 if len(self.scales) < 2 else len(self.shape) - 1, "block_size": self.block}
        node = helper.make_node("DequantizeLinear", inputs, ["y"], **attributes, **({"output_dtype": 1} if self.typed else {}))
        values = {"x": 0, "s": 1, "z": self.zero or 0}
        constants = [helper.make_tensor(n, types[n], shapes[n], [values[n]] * int(np.prod(shapes[n]))) for n in inputs]
        made = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("y", 1, None)], constants)
        return ir.from_proto(helper.make_model(made, opset_imports=[helper.make_opsetid("", 24)]))


GOOD = {
    "blocks of a bank": Scaled(),
    "blocks of a matrix": Scaled("INT4", (6, 32), (6, 2)),
    "whole rows of a bank": Scaled("FLOAT8E4M3FN", scales=(2, 6, 1), block=32),
    "the dimension before the last": Scaled(shape=(2, 32, 6), scales=(2, 2, 6)),
    "one for each row": Scaled(shape=(6, 32), scales=(6,), block=0),
    "one for all": Scaled(scales=(), block=0),
    "a zero point that is 0": Scaled(zero=0),
    "floats of 4 bits": Scaled("FLOAT4E2M1"),
}
BAD = {
    "unsigned": (Scaled("UINT4"), "UINT4"),
    "two bits": (Scaled("INT2"), "INT2"),
    "zero point": (Scaled(zero=3), "zero point is not 0"),
    "no type": (Scaled(typed=False), "type of its output"),
    "two blocked": (Scaled(scales=(2, 3, 2)), "2 blocked dimensions"),
    "first blocked": (Scaled(shape=(32, 6, 4), scales=(2, 6, 4)), "dimension 0"),
    "first blocked, in 4 bits": (Scaled("INT4", (32, 6, 4), (2, 6, 4)), "dimension 0"),
    "uneven": (Scaled(shape=(2, 6, 24), block=16), "do not fill 24"),
    "odd": (Scaled("INT4", (6, 33), (6,), 0), "odd number"),
    "rank": (Scaled(scales=(6, 2)), "another number of dimensions"),
}


@pytest.mark.parametrize("name", GOOD)
def test_takes(name):
    assert graph_gaps(GOOD[name].model()) == []


@pytest.mark.parametrize("name", BAD)
def test_would_not_take(name):
    scaled, reason = BAD[name]
    (gap,) = graph_gaps(scaled.model())
    assert gap.where == "x" and reason in gap.why and gap.blocks


def test_four_bits_are_for_weights():
    model = Scaled("INT4").model()
    codes = model.graph.initializers.pop("x")
    codes.const_value = None
    model.graph.inputs.append(codes)
    (gap,) = graph_gaps(model)
    assert gap.where == "x" and "INT4 that is no weight" in gap.why
