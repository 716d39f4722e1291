"""A checkpoint on disk: safetensors files, sharded or not, read row by row and never mapped as a whole.

A memory map would count every page it touched as memory of the process, so tensors are read with `preadv`.
The files are checked when opened: that each is one of the directory's own, its header, and the set of shards by their index.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Protocol

import torch

from mocomp.errors import BadInput
from mocomp.terminal import printable
from mocomp.weights.finite import is_finite
from mocomp.weights.headers import Entry, entries_of
from mocomp.weights.json_files import read_object
from mocomp.weights.own_files import COPY, own_file
from mocomp.weights.recipes import Reader, Tensor

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
RESAVE = (
    "Load it once where you trust it and save it again: AutoModel.from_pretrained(DIR)"
    ".save_pretrained(NEW, safe_serialization=True)"
)
NOT_NUMBERS = "Copy or download the file again; if it is like that at its source, the training that wrote it had diverged."


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
            for name, entry in entries_of(file).items():
                if name in self.entries:
                    raise BadInput(f"tensor {name} is also in {self.entries[name].file.name}", where=str(file))
                self.entries[name] = entry
        self._check_index()
        self._handles: dict[Path, int] = {}
        self._opening = Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        """In another process its files are opened there, once, and read through that from then on."""
        return _opened, (self.directory.absolute(), self.label, tuple(self.sizes().items()))

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
        return read_object(path) if path.exists() else {}

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
        """Rows start..stop of a tensor (all of it when it is a scalar), in a buffer of its own.

        Raises BadInput where the file ends before them, and for weights that are no finite numbers.
        """
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
        if not is_finite(tensor):
            raise BadInput(f"tensor {name} holds NaN or infinity", where=str(entry.file), fix=NOT_NUMBERS)
        return tensor

    def _handle(self, file: Path) -> int:
        if file not in self._handles:
            with self._opening:  # two threads may be the first
                if file not in self._handles:
                    self._handles[file] = os.open(file, os.O_RDONLY)
        return self._handles[file]

    def _check_index(self) -> None:
        index = self.directory / INDEX
        if not index.exists():
            return
        promised = read_object(index)["weight_map"]
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


class Weights(Labelled, Protocol):
    """All that is asked of the weights of a source, whether they are in files or in memory."""

    @property
    def nbytes(self) -> int: ...

    def sizes(self) -> dict[str, int]:
        """The files that they are in, with their lengths in bytes."""
        ...


@dataclass(frozen=True)
class Readers:
    """A reader of several checkpoints, told apart by their labels, the longest of which comes first."""

    checkpoints: tuple[Labelled, ...]

    def __call__(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of a tensor."""
        return next(c for c in self.checkpoints if name.startswith(c.label)).read(name, start, stop)


def reader_of(checkpoints: Sequence[Labelled]) -> Reader:
    """One reader of several checkpoints; one of them may have no label."""
    return Readers(tuple(sorted(checkpoints, key=lambda checkpoint: -len(checkpoint.label))))


@cache
def _opened(directory: Path, label: str, sizes: tuple[tuple[str, int], ...]) -> Checkpoint:
    """A checkpoint that another process has open, in this one; its sizes are only there to tell it from an older one."""
    return Checkpoint(directory, label)


def _weight_files(directory: Path) -> list[Path]:
    if os.path.lexists(directory / INDEX):
        names = _shards(directory / INDEX)
        missing = [name for name in names if not os.path.lexists(directory / name)]
        if missing:
            raise BadInput(
                f"{len(missing)} of {len(names)} shards are missing: {', '.join(missing[:3])}",
                where=str(directory),
                fix="Copy or download the missing files.",
            )
        return [own_file(directory, name) for name in names]
    if os.path.lexists(directory / SINGLE):
        return [own_file(directory, SINGLE)]
    pickles = sorted(path.name for pattern in PICKLES for path in directory.glob(pattern))
    if pickles:
        raise BadInput(f"only pickled weights ({pickles[0]}), which run code when loaded", where=str(directory), fix=RESAVE)
    raise BadInput(f"no {SINGLE} and no {INDEX}", where=str(directory))


def _shards(index: Path) -> list[str]:
    """The files that an index names, each in its own directory."""
    shards = read_object(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) and name for name in shards.values()):
        raise BadInput("no usable weight_map", where=str(index), fix="Copy the index again.")
    names = sorted(set(shards.values()))
    outside = [name for name in names if Path(name).name != name or not name.isprintable()]
    if outside:
        raise BadInput(f"the index names a file outside its directory: {printable(outside[0])}", where=str(index), fix=COPY)
    return names
