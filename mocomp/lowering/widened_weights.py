"""Weights in 16 bits that a graph widens before it reads them, widened once for all of its runs.

ONNX Runtime would do that in each run, or, folding constants, hold two and three copies at once.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

TYPES = {ir.DataType.FLOAT16: torch.float16, ir.DataType.BFLOAT16: torch.bfloat16}
TOGETHER = 1 << 22
"""Numbers that are read at once."""


def widened(model: ir.Model) -> dict[str, np.ndarray]:
    """Make inputs of a graph of the float32 forms of its weights in 16 bits; gives what these inputs are to be given."""
    graph, given = model.graph, {}
    for node in list(graph):
        held = node.inputs[0] if node.op_type == "Cast" else None
        if held is None or held.name not in graph.initializers or held.dtype not in TYPES:
            continue
        if not isinstance(held.const_value, ir.ExternalTensor) or node.outputs[0].dtype != ir.DataType.FLOAT:
            continue
        wide = ir.Value(name=node.outputs[0].name, type=ir.TensorType(ir.DataType.FLOAT), shape=held.shape)
        for use in list(node.outputs[0].uses()):
            use.node.replace_input_with(use.idx, wide)
        graph.remove(node, safe=True)
        graph.inputs.append(wide)
        given[str(wide.name)] = _read(held.const_value, TYPES[held.dtype])
        if not held.uses():
            graph.initializers.pop(held.name)
    return given


def _read(tensor: ir.ExternalTensor, dtype: torch.dtype) -> np.ndarray:
    """Its numbers in float32. Read, and not mapped: pages of a map count as memory of the process as long as it stands."""
    made = torch.empty(math.prod(tensor.shape.numpy()), dtype=torch.float32)
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        for some in made.split(TOGETHER):
            words = np.fromfile(file, np.int16, some.numel())
            some.copy_(torch.from_numpy(words).view(dtype))
    return made.numpy().reshape(tensor.shape.numpy())
