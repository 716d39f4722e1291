"""Tensors that are made before they are written: on disk, beside the output, until the artifact has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import BinaryIO

import torch

from mocomp.weights.recipes import Tensor


class Scratch:
    """Tensors by name in a directory of their own, filled by rows and then read by rows; a `Checkpoint` of our own making.

    `label` stands before their names in recipes, so that a reader of several checkpoints tells them apart.
    """

    def __init__(self, directory: Path, label: str):
        self.directory, self.label = directory, label
        self.tensors: dict[str, Tensor] = {}
        self._files: dict[str, BinaryIO] = {}
        directory.mkdir(parents=True)

    def append(self, recipe: Tensor, rows: torch.Tensor) -> None:
        """The next rows of what `recipe` promises."""
        if recipe.name not in self.tensors:
            self.tensors[recipe.name] = recipe
            self._files[recipe.name] = (self.directory / f"{len(self._files)}").open("w+b")
        assert rows.dtype == recipe.dtype and rows.shape[1:] == recipe.shape[1:], recipe.name
        self._files[recipe.name].write(rows.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop of a tensor."""
        recipe, file = self.tensors[name], self._files[name]
        shape = (stop - start, *recipe.shape[1:]) if recipe.shape else ()
        tensor = torch.empty(shape, dtype=recipe.dtype)
        row = math.prod(recipe.shape[1:]) * recipe.dtype.itemsize
        file.seek(start * row)
        if tensor.numel():
            count = file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)  # type: ignore[attr-defined]
            assert count == tensor.nbytes, f"{name} was never filled"
        return tensor

    def close(self) -> None:
        """Give the files back to the disk."""
        for number, file in enumerate(self._files.values()):
            file.close()
            (self.directory / f"{number}").unlink()
        self._files.clear()
        self.directory.rmdir()
