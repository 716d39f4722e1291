"""Rows of calibration data from the model's own inputs, as arrays in one file: .npz or .safetensors.

Dimension letters: R rows, S tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from mocomp.errors import BadInput
from mocomp.models.interface import Interface

FIX = "Each input of the model is an array of that name, its first dimension the rows."
UNREADABLE = (OSError, ValueError, TypeError, EOFError, BadZipFile, SafetensorError)
"""What numpy and safetensors raise for a file that is empty, cut off, of another kind, or not of numbers."""


def _npz(path: Path) -> dict[str, Tensor]:
    with (
        path.open("rb") as file,
        np.load(file, allow_pickle=False) as found,
    ):  # a single array, which .npy holds, is no context: TypeError
        return {name: torch.from_numpy(found[name]) for name in found.files}


READERS: dict[str, Callable[[Path], dict[str, Tensor]]] = {".npz": _npz, ".safetensors": load_file}


def rows(path: Path, interface: Interface, longest: int | None) -> list[dict[str, Tensor]]:
    """One row for each of the first dimension, which all arrays share; a mask that is not there is all ones. Integers come
    out as int64 and floats as float32, whatever they are stored as.

    Raises BadInput for a file that is not readable, an input that is missing or of another shape, an id of no token.
    """
    try:
        found = READERS[path.suffix](path)
    except UNREADABLE as error:
        raise BadInput(f"not readable: {error}", where=str(path), fix=FIX) from error
    if "attention_mask" in interface.inputs and "attention_mask" not in found and "input_ids" in found:
        found["attention_mask"] = torch.ones_like(found["input_ids"])
    names = [name for name in interface.inputs if not name.startswith("past_key_values")]
    missing = [name for name in names if name not in found]
    if missing:
        raise BadInput(f"it has no {missing[0]}, only {', '.join(found) or 'nothing'}", where=str(path), fix=FIX)
    used = {name: _check(name, found[name], interface, longest, path) for name in names}
    counts = {name: array.shape[0] for name, array in used.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} rows of {name}" for name, count in counts.items())
        raise BadInput(f"its arrays have {told}", where=str(path), fix=FIX)
    lengths = {name: array.shape[1] for name, array in used.items() if name != "pixel_values"}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{length} tokens of {name}" for name, length in lengths.items())
        raise BadInput(f"its rows have {told}", where=str(path), fix=FIX)
    return [{name: array[i : i + 1] for name, array in used.items()} for i in range(min(counts.values()))]


def _check(name: str, array: Tensor, interface: Interface, longest: int | None, path: Path) -> Tensor:
    """The array in the type that the model takes."""
    if array.numel() == 0:
        raise BadInput(f"{name} is {list(array.shape)}, which is empty", where=str(path), fix=FIX)
    if name == "pixel_values":
        return _images(array, interface, path)
    if array.dim() != 2 or array.is_floating_point():
        raise BadInput(f"{name} is {list(array.shape)} {array.dtype}, expected [R, S] of integers", where=str(path), fix=FIX)
    if longest is not None and array.shape[1] > longest:
        raise BadInput(f"{name} has rows of {array.shape[1]} tokens, and the model {longest} positions", where=str(path))
    array = array.long()
    if name == "input_ids" and not 0 <= int(array.min()) <= int(array.max()) < interface.vocabulary:
        raise BadInput(f"input_ids has an id that is not in the vocabulary of {interface.vocabulary}", where=str(path))
    return array


def _images(array: Tensor, interface: Interface, path: Path) -> Tensor:
    if tuple(array.shape[1:]) != tuple(interface.image) or not array.is_floating_point():
        expected = ", ".join(map(str, ("R", *interface.image)))
        raise BadInput(f"pixel_values is {list(array.shape)} {array.dtype}, expected [{expected}] of floats", where=str(path))
    if not bool(array.isfinite().all()):
        raise BadInput("pixel_values has numbers that are none", where=str(path))
    return array.float()
