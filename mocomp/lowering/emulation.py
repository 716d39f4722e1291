"""The float32 twin of a graph in 16 bits, on the same weight files: what a machine without the GPU can prove of it.

Each number is what the file holds, rounded as it is, and everything that is computed from it is float32.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from mocomp.lowering.emulated_floats import unpack
from mocomp.lowering.retyping import retype_nodes, retype_values

NARROW = {ir.DataType.FLOAT16: ir.DataType.FLOAT, ir.DataType.BFLOAT16: ir.DataType.FLOAT}


def widen(model: ir.Model) -> None:
    """Change a graph with float16 or bfloat16 in it to compute in float32: weights are cast when they are read, and all that
    the graph takes, holds and gives is float32."""
    for node in [
        node for node in model.graph if "quant_type" in node.attributes and node.attributes["quant_type"].as_string() == "nvfp4"
    ]:
        unpack(model.graph, node)
    for graph in (model.graph, *(f.graph for f in model.functions.values())):
        retype_nodes(graph.all_nodes(), NARROW, lambda array: array.astype(np.float32))
    retype_values([*model.graph.inputs, *model.graph.outputs], NARROW)
    for value in list(model.graph.initializers.values()):
        if value.dtype in NARROW:
            _read_as_float32(model.graph, value)


def _read_as_float32(graph: ir.Graph, value: ir.Value) -> None:
    cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(ir.DataType.FLOAT))])
    wide = cast.outputs[0]
    wide.name, wide.dtype, wide.shape = f"{value.name}/widened", ir.DataType.FLOAT, value.shape
    for use in list(value.uses()):
        use.node.replace_input_with(use.idx, wide)
    cast.replace_input_with(0, value)
    graph.insert_before(graph[0], cast)
