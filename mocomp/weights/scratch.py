"""Tensors that are made before they are written: on disk, beside the output, until the artifact has them."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch

from mocomp.executors import Executor
from mocomp.executors.local import Local
from mocomp.weights import disk
from mocomp.weights.journal import Journal
from mocomp.weights.parts import Span, bytes_of, of
from mocomp.weights.recipes import Tensor


class Scratch:
    """Tensors by name in a directory of their own, filled by rows and then read by rows; a `Checkpoint` of our own making.

    `label` stands before their names in recipes, so that a reader of several checkpoints tells them apart. A file holds one
    tensor; `journal` knows those parts that an earlier run has filled, and `executor` fills what can be filled in any order.
    """

    def __init__(self, directory: Path, label: str, executor: Executor | None = None, journal: Journal | None = None):
        self.directory, self.label = directory.absolute(), label
        self.executor, self.journal = executor or Local(), journal or Journal()
        self.tensors: dict[str, Tensor] = {}
        self._numbers: dict[str, int] = {}
        self._filled: dict[str, int] = {}
        disk.make_directory(self.directory)

    def __getstate__(self) -> dict:
        """What another process reads with; it fills nothing."""
        return {name: self.__dict__[name] for name in ("directory", "label", "tensors", "_numbers")}

    def span(self, recipe: Tensor, start: int, stop: int) -> Span:
        """Where rows start..stop of what `recipe` promises are, or are to be."""
        if recipe.name not in self.tensors:
            self.tensors[recipe.name] = recipe
            self._numbers[recipe.name] = len(self._numbers)
        row = _row(recipe)
        return Span(self._path(recipe.name), start * row, (stop - start) * row)

    def append(self, recipe: Tensor, rows: torch.Tensor) -> None:
        """The next rows of what `recipe` promises."""
        assert rows.dtype == recipe.dtype and rows.shape[1:] == recipe.shape[1:], recipe.name
        span = self._next(recipe, len(rows) if recipe.shape else 1)
        data = bytes_of(rows)
        with disk.File(span.path) as file:
            file.write_at(span.offset, data)
        self.journal.done(*of(self.journal, span), hashlib.sha256(data).hexdigest())

    def kept(self, rows: dict[Tensor, int]) -> list[torch.Tensor] | None:
        """So many of the next rows of each of these, as an earlier run appended them; None where it did not get so far."""
        starts = [self._filled.get(recipe.name, 0) for recipe in rows]
        spans = [self.span(recipe, start, start + rows[recipe]) for recipe, start in zip(rows, starts, strict=True)]
        if any(self.journal.known(*of(self.journal, span)) is None for span in spans):
            return None
        for recipe, count in rows.items():
            self._next(recipe, count)
        return [self.read(r.name, start, start + count) for (r, count), start in zip(rows.items(), starts, strict=True)]

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of a tensor."""
        recipe = self.tensors[name]
        tensor = torch.empty((stop - start, *recipe.shape[1:]) if recipe.shape else (), dtype=recipe.dtype)
        with self._path(name).open("rb") as file:
            file.seek(start * _row(recipe))
            count = file.readinto(bytes_of(tensor)) if tensor.numel() else 0
        assert count == tensor.nbytes, f"{name} was never filled"
        return tensor

    def close(self) -> None:
        """Give the files back to the disk, and what is known of them too."""
        for name in self.tensors:
            self.journal.forget(of(self.journal, Span(self._path(name), 0, 0))[0])
        self.tensors.clear()
        disk.remove_tree(self.directory)

    def _next(self, recipe: Tensor, count: int) -> Span:
        start = self._filled.get(recipe.name, 0)
        self._filled[recipe.name] = start + count
        return self.span(recipe, start, start + count)

    def _path(self, name: str) -> Path:
        return self.directory / f"{self._numbers[name]}"


def _row(recipe: Tensor) -> int:
    """Bytes of a row; of a number alone, its own."""
    return math.prod(recipe.shape[1:]) * recipe.dtype.itemsize
