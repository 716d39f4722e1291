"""The graphs of ranks on disk: `rank_i/` has all that rank i needs, and nothing of it lies elsewhere.

`dense_0.onnx` ... are the pieces around the mixtures, `experts_0.onnx` ... the rank's experts of each mixture; their weights,
copied out of the artifact part by part, are in `dense.onnx.data` and `experts.onnx.data`. `rank.json` says what is what.
Dimension letters: E experts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch

from mocomp.errors import Unsupported
from mocomp.lowering.onnx_session import DATA
from mocomp.lowering.ranks_graph import RankGraphs, Seam
from mocomp.weights import disk
from mocomp.weights.arithmetic import pick
from mocomp.weights.recipes import Reader, Recipe, Tensor
from mocomp.weights.writer import Placed, Writer

INDEX = "rank.json"
DENSE, EXPERTS = "dense.onnx.data", "experts.onnx.data"


@dataclass(frozen=True)
class Cut:
    """One mixture as a rank has it: its graph, the names of the values around it, the piece after which it runs, and which of
    `total` experts are the rank's, in the order of its weights."""

    layer: str
    file: str
    x: str
    ids: str
    weights: str
    y: str
    after: int
    total: int
    experts: tuple[int, ...]


@dataclass(frozen=True)
class Rank:
    """What `rank.json` holds: the pieces in their order, the mixtures, and the outputs of the whole."""

    rank: int
    ranks: int
    pieces: tuple[str, ...]
    mixtures: tuple[Cut, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Stored:
    """Reads the weights of an artifact as bytes: a name is where it lies, `offset:length of a row`."""

    path: Path

    def __call__(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Rows start..stop, [rows, length] uint8; [bytes] where rows are single bytes."""
        offset, length = map(int, name.split(":"))
        data = np.fromfile(self.path, np.uint8, (stop - start) * length, offset=offset + start * length)
        return torch.from_numpy(data if length == 1 else data.reshape(stop - start, length))


def folder(directory: Path, rank: int) -> Path:
    """Where a rank's files are."""
    return directory / f"rank_{rank}"


def shared_bytes(graphs: RankGraphs) -> tuple[int, int]:
    """(bytes of the weights that every rank has, bytes of those that are shared out)."""
    banks = {value.name for seam in graphs.seams for value in _stored(graphs.experts(seam, seam.experts))}
    sizes = {
        name: value.const_value.length or 0
        for name, value in graphs.model.graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    own = sum(length for name, length in sizes.items() if name in banks)
    return sum(sizes.values()) - own, own


def write(
    graphs: RankGraphs, directory: Path, places: Sequence[Sequence[Sequence[int]]], writer: Callable[[Reader], Writer]
) -> list[str]:
    """All ranks of the artifact in `directory`, with the experts of `places` (mixture by mixture those of each rank); `writer`
    gives what writes weights that something reads. The names of the files.

    Raises Unsupported where an expert does not fill whole bytes.
    """
    for seam in graphs.seams:
        _refuse_split_bytes(seam, _stored(graphs.experts(seam, seam.experts)))
    pieces, writes = graphs.pieces(), writer(Stored(directory / DATA))
    files: list[str] = []
    for rank in range(len(places[0])):
        held = [layer[rank] for layer in places]
        files += [f"rank_{rank}/{name}" for name in _write_one(graphs, pieces, directory, rank, held, len(places[0]), writes)]
    return files


def _write_one(
    graphs: RankGraphs,
    pieces: list[ir.Model],
    directory: Path,
    rank: int,
    held: Sequence[Sequence[int]],
    ranks: int,
    writer: Writer,
) -> Iterator[str]:
    home = folder(directory, rank)
    disk.make_directory(home)
    stored = {
        v.name: v.const_value for v in graphs.model.graph.initializers.values() if isinstance(v.const_value, ir.ExternalTensor)
    }
    common = {name: _bytes(stored[name]) for piece in pieces for name in piece.graph.initializers if name in stored}
    at = writer.write(home / DENSE, common)
    for i, piece in enumerate(pieces):
        yield _save(
            piece, home, f"dense_{i}.onnx", DENSE, {name: at[name] for name in piece.graph.initializers if name in common}
        )
    own = [graphs.experts(seam, len(experts)) for seam, experts in zip(graphs.seams, held, strict=True)]
    shares = {
        f"{i}/{value.name}": pick(_rows(stored[value.name], seam.experts), 0, tuple(experts))
        for i, (seam, experts, model) in enumerate(zip(graphs.seams, held, own, strict=True))
        for value in _stored(model)
    }
    at = writer.write(home / EXPERTS, shares)
    for i, model in enumerate(own):
        yield _save(model, home, f"experts_{i}.onnx", EXPERTS, {str(v.name): at[f"{i}/{v.name}"] for v in _stored(model)})
    names = tuple(f"dense_{i}.onnx" for i in range(len(pieces)))
    cuts = tuple(_cut(seam, i, experts) for i, (seam, experts) in enumerate(zip(graphs.seams, held, strict=True)))
    outputs = tuple(str(value.name) for value in graphs.model.graph.outputs)
    disk.write_text(home / INDEX, json.dumps(asdict(Rank(rank, ranks, names, cuts, outputs)), indent=1) + "\n")
    yield from (DENSE, EXPERTS, INDEX)


def _cut(seam: Seam, i: int, experts: Sequence[int]) -> Cut:
    x, ids, weights, y = (str(value.name) for value in (*seam.inputs, seam.y))
    return Cut(seam.layer, f"experts_{i}.onnx", x, ids, weights, y, seam.after, seam.experts, tuple(experts))


def _stored(model: ir.Model) -> list[ir.Value]:
    """The weights of a graph whose bytes are to be put beside it."""
    return [value for value in model.graph.initializers.values() if value.const_value is None]


def _bytes(tensor: ir.ExternalTensor) -> Recipe:
    return Tensor((tensor.length or 0,), torch.uint8, f"{tensor.offset or 0}:1")


def _rows(tensor: ir.ExternalTensor, experts: int) -> Recipe:
    """[E, bytes of an expert]."""
    length = (tensor.length or 0) // experts
    return Tensor((experts, length), torch.uint8, f"{tensor.offset or 0}:{length}")


def _refuse_split_bytes(seam: Seam, weights: list[ir.Value]) -> None:
    for value in weights:
        assert value.dtype is not None and value.shape is not None
        if math.prod(int(size) for size in value.shape[1:]) * value.dtype.bitwidth % 8:
            raise Unsupported(
                f"{value.name}: an expert does not fill whole bytes, so experts cannot be stored apart",
                where=seam.layer,
                fix="Take a format of 8 bits, or another --group-size.",
            )


def _save(model: ir.Model, home: Path, file: str, data: str, placed: dict[str, Placed]) -> str:
    for name, at in placed.items():
        value = model.graph.initializers[name]
        assert value.dtype is not None and value.shape is not None
        value.const_value = ir.ExternalTensor(
            data, at.offset, at.length, value.dtype, shape=value.shape, name=name, base_dir=home
        )
    disk.write_bytes(home / file, ir.to_proto(model).SerializeToString())
    return file
