"""A checkpoint written as transformers writes it: safetensors shards with an index, streamed from recipes."""

from __future__ import annotations

import json
import struct
from pathlib import Path

from mocomp.weights import disk
from mocomp.weights.headers import DTYPES
from mocomp.weights.recipes import Recipe
from mocomp.weights.writer import Writer

NAMES = {dtype: name for name, dtype in DTYPES.items()}
LARGEST = 5_000_000_000
"""Bytes of a shard, as transformers has it."""


def write_checkpoint(directory: Path, weights: dict[str, Recipe], writer: Writer, largest: int = LARGEST) -> list[str]:
    """All weights, in shards of at most `largest` bytes (or one tensor); returns the names of the files."""
    shards = _shards(weights, largest)
    single = len(shards) == 1
    names = (
        ["model.safetensors"] if single else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        _write_shard(directory / name, shard, writer)
    if not single:
        places = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(recipe.nbytes for recipe in weights.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        disk.write_text(directory / "model.safetensors.index.json", json.dumps(index, indent=2) + "\n")
    return names


def _shards(weights: dict[str, Recipe], largest: int) -> list[dict[str, Recipe]]:
    shards: list[dict[str, Recipe]] = [{}]
    size = 0
    for name, recipe in weights.items():
        if shards[-1] and size + recipe.nbytes > largest:
            shards.append({})
            size = 0
        shards[-1][name] = recipe
        size += recipe.nbytes
    return shards


def _write_shard(path: Path, weights: dict[str, Recipe], writer: Writer) -> None:
    """The format: length of the header (8 bytes, little endian), the header as JSON, the tensors one after the other.

    Those of wide numbers come first, as the library has them, so that each stands at a multiple of its numbers' size.
    """
    weights = dict(sorted(weights.items(), key=lambda item: -item[1].dtype.itemsize))
    header: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, recipe in weights.items():
        header[name] = {
            "dtype": NAMES[recipe.dtype],
            "shape": list(recipe.shape),
            "data_offsets": [offset, offset + recipe.nbytes],
        }
        offset += recipe.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    writer.write(path, weights, struct.pack("<Q", len(text)) + text, alignment=1)
