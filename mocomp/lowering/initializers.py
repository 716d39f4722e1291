"""The numbers of a graph's initializers, wherever they lie."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir


def numbers(tensor: ir.TensorProtocol) -> np.ndarray:
    """A tensor as an array. One that lies in a file of weights is read and not mapped: pages of a map count as memory of the
    process for as long as the graph is held."""
    if not isinstance(tensor, ir.ExternalTensor) or tensor.dtype.itemsize < 1:
        return tensor.numpy()
    shape = tensor.shape.numpy()
    with Path(tensor.path).open("rb") as file:
        file.seek(tensor.offset or 0)
        return np.fromfile(file, tensor.dtype.numpy(), math.prod(shape)).reshape(shape)
