"""The header of a safetensors file, checked in full before a byte of it is believed.

The format: 8 bytes with the header's length, the header (JSON: type, shape and place of each tensor), the data without a gap.
What is refused here would be refused by the library too, mostly; but here the message names the tensor, and nothing
is allocated for a size that the file does not have. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mocomp.errors import BadInput
from mocomp.terminal import printable
from mocomp.weights.json_files import LARGEST, parse_object

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PREFIX = 8
DIMENSIONS = 64
"""As many as a tensor of torch may have."""
AGAIN = "Copy or download the file again."


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: file, byte offset, shape, type."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def entries_of(file: Path) -> dict[str, Entry]:
    """Every tensor of a safetensors file. Raises BadInput, with the tensor's name, for a header that is wrong in any way."""
    header, start = _header(file)
    told = header.pop("__metadata__", {})
    if not isinstance(told, dict) or not all(isinstance(value, str) for value in told.values()):
        raise _damaged(file, "its __metadata__ is no object of texts")
    length = file.stat().st_size - start
    spans: list[tuple[int, int, str]] = []
    entries: dict[str, Entry] = {}
    for name, item in header.items():
        try:
            dtype, shape, (begin, end) = _described(name, item, length)
        except ValueError as error:
            raise _damaged(file, f"tensor {printable(name)}: {error}") from error
        spans.append((begin, end, name))
        entries[name] = Entry(file, start + begin, shape, dtype)
    _refuse_gaps(file, spans, length)
    return entries


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """(the header, where the data begins); its length is checked before it is read."""
    length = file.stat().st_size
    with file.open("rb") as raw:
        size = int.from_bytes(raw.read(PREFIX), "little")
        if length < PREFIX or size > length - PREFIX:
            raise _damaged(file, f"its header is to have {size:,} bytes, and the file has {length:,}")
        if size > LARGEST:
            raise _damaged(file, f"its header has {size:,} bytes, and {LARGEST:,} are read at most")
        text = raw.read(size)
    try:
        header = parse_object(text, str(file))
    except BadInput as error:
        raise _damaged(file, f"its header is {error.what}") from error
    if not isinstance(header, dict):
        raise _damaged(file, "its header is no JSON object")
    return header, PREFIX + size


def _described(name: str, item: Any, length: int) -> tuple[torch.dtype, tuple[int, ...], tuple[int, int]]:
    """(type, shape, first and last byte) of one tensor. Raises ValueError where they cannot be, or contradict each other."""
    if not name.isprintable():
        raise ValueError("its name has characters that cannot be printed")
    if not isinstance(item, dict) or not isinstance(item.get("dtype"), str):
        raise ValueError("it has no type, shape and place")
    if item["dtype"] not in DTYPES:
        raise ValueError(f"it is of type {printable(item['dtype'][:40])}, which mocomp cannot read")
    dtype, shape, place = DTYPES[item["dtype"]], _sizes(item.get("shape")), _sizes(item.get("data_offsets"))
    if shape is None or len(shape) > DIMENSIONS:
        raise ValueError(f"its shape is {str(item.get('shape'))[:40]}")
    if place is None or len(place) != 2 or not place[0] <= place[1] <= length:
        raise ValueError(f"it lies at {str(item.get('data_offsets'))[:60]} of {length:,} bytes of data")
    needed = math.prod(shape) * dtype.itemsize
    if place[1] - place[0] != needed:
        raise ValueError(f"{list(shape)} of {item['dtype']} are {needed:,} bytes, and it has {place[1] - place[0]:,}")
    return dtype, shape, (place[0], place[1])


def _sizes(given: Any) -> tuple[int, ...] | None:
    """A list of whole numbers from 0 up to what 63 bits hold, else None."""
    if not isinstance(given, list) or not all(type(size) is int and 0 <= size < 1 << 63 for size in given):
        return None
    return tuple(given)


def _refuse_gaps(file: Path, spans: list[tuple[int, int, str]], length: int) -> None:
    """Raises BadInput unless the tensors lie side by side from the first byte of the data to the last."""
    reached, before = 0, ""
    for begin, end, name in sorted(spans):
        if begin < reached:
            raise _damaged(file, f"tensors {before} and {name} overlap")
        if begin > reached:
            raise _damaged(file, f"{begin - reached:,} bytes before tensor {name} belong to none")
        reached, before = end, name
    if reached < length:
        raise _damaged(file, f"the last {length - reached:,} bytes belong to no tensor")


def _damaged(file: Path, what: str) -> BadInput:
    return BadInput(f"damaged or truncated: {what}", where=str(file), fix=AGAIN)
