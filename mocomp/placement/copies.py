"""What every rank has of its own: the pieces around the mixtures and their weights, byte for byte those of rank 0.

So what rank 0's do, however few calls there are to run them all, is proven of each.
"""

from __future__ import annotations

from pathlib import Path

from mocomp.errors import BadInput
from mocomp.lowering.ranks_files import DENSE, Rank, folder
from mocomp.weights.own_files import own_file

STEP = 1 << 20
"""Bytes that are compared at a time."""


def unlike(directory: Path, ranks: list[Rank]) -> list[str]:
    """The files that all ranks in `directory` have and that are not rank 0's in one of them, each told."""
    told = []
    for name in (*ranks[0].pieces, DENSE):
        for rank in ranks[1:]:
            if not _same(own(directory, 0, name), own(directory, rank.rank, name)):
                told.append(f"the ranks differ: {name} of rank {rank.rank} is not that of rank 0, and all have the same")
    return told


def own(directory: Path, rank: int, name: str) -> Path:
    """A file of a rank. Raises BadInput where it is missing, no regular file or another's."""
    home = folder(directory, rank)
    try:
        return own_file(home, name)
    except BadInput as error:
        raise BadInput(f"{name}: {error.what}", where=str(home), fix="Convert again.") from error


def _same(first: Path, second: Path) -> bool:
    if first.stat().st_size != second.stat().st_size:
        return False
    with first.open("rb") as one, second.open("rb") as other:
        while data := one.read(STEP):
            if data != other.read(STEP):
                return False
    return True
