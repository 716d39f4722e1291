"""A stable sort of torch as an operator of ONNX, which torch's exporter knows the other sort of alone."""

from __future__ import annotations

from typing import Any

import torch
from onnxscript import opset18 as op


def _stable_sort(x: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """TopK over all: of values that tie, the standard has it give the lower index first."""
    size = op.Shape(x, start=dim, end=dim + 1 if dim != -1 else None)
    return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)


TRANSLATIONS = {torch.ops.aten.sort.stable: _stable_sort}
