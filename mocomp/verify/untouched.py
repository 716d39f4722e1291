"""What a command was to leave as it is: compared with its source, byte for byte, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from mocomp import terminal
from mocomp.errors import ParityFailed
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Reader, Recipe

PIECE = 32 << 20
"""Bytes that are compared at a time."""
FIX = "Nothing was kept. This is a fault of mocomp, or of the disk: run it again, and report it if it comes back."


def refuse_touched(directory: Path, untouched: Mapping[str, Recipe], read: Reader, was: str = "to stay as it is") -> str:
    """A note of how many tensors stand in the checkpoint in `directory` as `untouched` has them, by name; `was` says what each
    was to be.

    Raises ParityFailed for one that does not, or that is not there.
    """
    total = sum(recipe.nbytes for recipe in untouched.values())
    with Checkpoint(directory) as written, terminal.progress("proof, what was to stay", total) as advance:
        for name, recipe in untouched.items():
            entry = written.entries.get(name)
            if entry is None or (entry.shape, entry.dtype) != (recipe.shape, recipe.dtype):
                raise ParityFailed(f"tensor {name} was {was}, and is not there", where=str(directory), fix=FIX)
            for ours, theirs in _pairs(recipe, read, written.recipe(name), written.read):
                if not torch.equal(_bytes(ours), _bytes(theirs)):
                    raise ParityFailed(f"tensor {name} was {was}, and is not", where=str(directory), fix=FIX)
                advance(ours.nbytes)
    return f"{len(untouched)} tensors, each of which was {was}, were compared byte for byte"


def _pairs(recipe: Recipe, read: Reader, written: Recipe, read_written: Reader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Both in pieces of as many rows: what is computed is cut where that costs least."""
    if not recipe.shape:
        yield recipe.evaluate(read), written.evaluate(read_written)
        return
    reached = 0
    for ours in recipe.chunks(read, PIECE):
        yield ours, written.rows(read_written, reached, reached + len(ours))
        reached += len(ours)


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
