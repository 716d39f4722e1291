"""Numpy arrays as values of an ONNX Runtime session and back, on any device, bfloat16 included, which numpy has not."""

from __future__ import annotations

import ctypes
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

TYPES = {"tensor(float)": np.dtype(np.float32), "tensor(float16)": np.dtype(np.float16)}
TYPES |= {"tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16), "tensor(double)": np.dtype(np.float64)}


def fitting(array: np.ndarray, kind: str) -> np.ndarray:
    """An array in the type of an input, which a session calls such as `tensor(float16)`; what is no float as it is."""
    return array.astype(TYPES[kind], copy=False) if kind in TYPES else array


def put(array: np.ndarray, device: str) -> Any:
    """An OrtValue on `device`, cpu or cuda, that holds a copy of an array."""
    from onnxruntime import OrtValue

    kind = int(ir.DataType.from_numpy(array.dtype))
    value = OrtValue.ortvalue_from_shape_and_type(list(array.shape), kind, device, 0)
    if array.size:
        value.update_inplace(np.ascontiguousarray(_numbers(array)))
    return value


def taken(value: Any) -> np.ndarray:
    """The array of an OrtValue that is on the CPU; 16-bit floats become float32."""
    if value.data_type() == "tensor(bfloat16)":
        words = np.empty(tuple(value.shape()), np.uint16)
        ctypes.memmove(words.ctypes.data, value.data_ptr(), words.nbytes)
        return as_float32(words.view(ml_dtypes.bfloat16))
    return as_float32(np.asarray(value.numpy()))


def as_float32(array: np.ndarray) -> np.ndarray:
    """An array as it is, but for one of 16-bit floats."""
    return array.astype(np.float32) if array.dtype in (np.float16, ml_dtypes.bfloat16) else array


def _numbers(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint16) if array.dtype == ml_dtypes.bfloat16 else array
