"""A checkpoint on disk: safetensors files, sharded or not, read row by row and never mapped as a whole.

A memory map would count every page it touched as memory of the process, so tensors are read with `preadv`.
The files are checked when opened: the headers by the safetensors library, the set of shards by their index.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from mocomp.errors import BadInput
from mocomp.weights.recipes import Reader, Tensor

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
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
RESAVE = (
    "Load it once where you trust it and save it again: AutoModel.from_pretrained(DIR)"
    ".save_pretrained(NEW, safe_serialization=True)"
)


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: file, byte offset, shape, type."""

    file: Path
    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class Checkpoint:
    """The tensors of a Hugging Face directory, by name; reads rows of one at a time.

    In recipes `label` stands before their names, so that those of several checkpoints can be in one.
    Raises BadInput for a directory without weights, a missing, truncated or damaged shard, pickles.
    """

    def __init__(self, directory: Path, label: str = ""):
        self.directory, self.label = directory, label
        self.files = _weight_files(directory)
        self.entries: dict[str, Entry] = {}
        for file in self.files:
            for name, entry in _entries(file).items():
                if name in self.entries:
                    raise BadInput(f"tensor {name} is also in {self.entries[name].file.name}", where=str(file))
                self.entries[name] = entry
        self._check_index()
        self._handles: dict[Path, int] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles.values():
            os.close(handle)
        self._handles.clear()

    @property
    def config(self) -> dict[str, Any]:
        """What config.json beside the weights says; nothing where there is none."""
        path = self.directory / "config.json"
        return _read_json(path) if path.exists() else {}

    @property
    def nbytes(self) -> int:
        return sum(math.prod(e.shape) * e.dtype.itemsize for e in self.entries.values())

    def sizes(self) -> dict[str, int]:
        """Each weight file with its length in bytes, for the report."""
        return {file.name: file.stat().st_size for file in self.files}

    def recipe(self, name: str) -> Tensor:
        entry = self.entries[name]
        return Tensor(entry.shape, entry.dtype, self.label + name)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of a tensor (all of it when it is a scalar), in a buffer of its own."""
        entry = self.entries[name.removeprefix(self.label)]
        shape = (stop - start, *entry.shape[1:]) if entry.shape else ()
        tensor = torch.empty(shape, dtype=entry.dtype)
        if tensor.numel() == 0:
            return tensor
        row = math.prod(entry.shape[1:]) * entry.dtype.itemsize
        view, offset = tensor.view(-1).view(torch.uint8).numpy().data, entry.offset + start * row
        while view:  # one read call transfers at most 2 GiB
            count = os.preadv(self._handle(entry.file), [view], offset)
            if count == 0:
                raise BadInput(f"the file ends inside tensor {name}", where=str(entry.file), fix="Copy the shard again.")
            view, offset = view[count:], offset + count
        return tensor

    def _handle(self, file: Path) -> int:
        if file not in self._handles:
            self._handles[file] = os.open(file, os.O_RDONLY)
        return self._handles[file]

    def _check_index(self) -> None:
        index = self.directory / "model.safetensors.index.json"
        if not index.exists():
            return
        promised = _read_json(index)["weight_map"]
        absent = sorted(name for name in promised if name not in self.entries)
        if absent:
            raise BadInput(
                f"{len(absent)} tensors of the index are in no shard, among them {absent[0]} (of {promised[absent[0]]})",
                where=str(index),
                fix="Copy the shards again; index and shards are not of the same checkpoint.",
            )


class Labelled(Protocol):
    """What holds tensors whose names in recipes begin with its label."""

    label: str

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of a tensor."""
        ...


def reader_of(checkpoints: Sequence[Labelled]) -> Reader:
    """One reader of several checkpoints, told apart by their labels; one may have none."""
    longest_first = sorted(checkpoints, key=lambda checkpoint: -len(checkpoint.label))

    def read(name: str, start: int, stop: int) -> torch.Tensor:
        return next(c for c in longest_first if name.startswith(c.label)).read(name, start, stop)

    return read


def _weight_files(directory: Path) -> list[Path]:
    index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
    if index.exists():
        try:
            names = sorted({str(Path(name)) for name in _read_json(index)["weight_map"].values()})
        except (KeyError, AttributeError, TypeError) as error:
            raise BadInput(f"no usable weight_map ({error})", where=str(index), fix="Copy the index again.") from error
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise BadInput(f"the index names a file outside its directory: {outside[0]}", where=str(index))
        missing = [name for name in names if not (directory / name).exists()]
        if missing:
            raise BadInput(
                f"{len(missing)} of {len(names)} shards are missing: {', '.join(missing[:3])}",
                where=str(directory),
                fix="Copy or download the missing files.",
            )
        return [directory / name for name in names]
    if single.exists():
        return [single]
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise BadInput(f"only pickled weights ({pickles[0]}), which run code when loaded", where=str(directory), fix=RESAVE)
    raise BadInput("no model.safetensors and no model.safetensors.index.json", where=str(directory))


def _entries(file: Path) -> dict[str, Entry]:
    try:
        # The library checks that the header is whole and agrees with the length of the file.
        with safe_open(file, framework="pt") as opened:
            opened.keys()
        with file.open("rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise BadInput(f"damaged or truncated: {error}", where=str(file), fix="Copy or download the file again.") from error
    header.pop("__metadata__", None)
    unknown = sorted({item["dtype"] for item in header.values()} - DTYPES.keys())
    if unknown:
        raise BadInput(f"tensors of type {', '.join(unknown)}, which mocomp cannot read", where=str(file))
    return {
        name: Entry(file, 8 + size + item["data_offsets"][0], tuple(item["shape"]), DTYPES[item["dtype"]])
        for name, item in header.items()
    }


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"not readable as JSON: {error}", where=str(path), fix="Copy the file again.") from error
