"""Where tensors lie in the files of an artifact or a checkpoint, so that what is damaged in them has a name."""

from __future__ import annotations

import math
from pathlib import Path

import onnx

from mocomp.errors import BadInput
from mocomp.lowering.external_data import tensors_of
from mocomp.weights.headers import entries_of
from mocomp.weights.own_files import own_file

LARGEST, DIGITS = 2 << 30, 19
"""Bytes of an ONNX file, by its format; digits of a number of 63 bits."""


def damaged_tensors(directory: Path, file: str, spans: list[tuple[int, int]]) -> list[str]:
    """The tensors of which some byte is in one of `spans` (offset, length in bytes); none where the file is of another kind."""
    try:
        places = _places(directory, file)
    except BadInput:  # the header is what is damaged
        return []
    return [name for name, begin, length in places if any(at < begin + length and begin < at + size for at, size in spans)]


def _places(directory: Path, file: str) -> list[tuple[str, int, int]]:
    """(name, offset, length in bytes) of each tensor in a file of weights."""
    if file.endswith(".safetensors"):
        return [(name, e.offset, math.prod(e.shape) * e.dtype.itemsize) for name, e in entries_of(directory / file).items()]
    path = directory / file
    return [place for graph in sorted(path.parent.glob("*.onnx")) for place in _of_graph(directory, graph, path.name)]


def _of_graph(directory: Path, graph: Path, data: str) -> list[tuple[str, int, int]]:
    try:
        own_file(directory, str(graph.relative_to(directory)))
        if graph.stat().st_size > LARGEST:
            return []
        model = onnx.load(graph, load_external_data=False)
    except Exception:  # of protobuf's own kinds; that it is damaged, or no file, is told of the graph itself
        return []
    found = []
    for tensor in tensors_of(model):
        about = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = about.get("offset", "0"), about.get("length", "0")
        if about.get("location") == data and all(text.isascii() and text.isdigit() for text in (offset, length)):
            found.append((tensor.name, int(offset[:DIGITS]), int(length[:DIGITS])))
    return found
