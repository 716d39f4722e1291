"""A uniform sample of the tokens that come to a block, on disk until it is asked for.

Dimension letters: T tokens, H hidden.
"""

from __future__ import annotations

import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path

import torch

PLACE = Path("/var/tmp")
"""Where temporary files are on a disk, where /tmp may be memory."""


@dataclass
class Seen:
    """A sample of the tokens that came to a block: x [T, H] float32, and the modality of each [T] where there are groups."""

    x: torch.Tensor
    modality: torch.Tensor | None = None

    def of(self, modality: int) -> torch.Tensor:
        """The x of one modality; of all where tokens have none."""
        return self.x if self.modality is None else self.x[self.modality == modality]


class Sample:
    """A uniform sample of all that is added: the `limit` tokens with the smallest of random keys, in their order.

    The tokens of all layers of a model at once can be more than memory holds, so each sample is a file without a name.
    """

    def __init__(self, limit: int, seed: int):
        self.limit, self.generator = limit, torch.Generator().manual_seed(seed)
        self.keys = torch.empty(0)
        self.modality: torch.Tensor | None = None
        self.added = self.width = 0
        self._places = torch.empty(0, dtype=torch.int64)
        self._file = tempfile.TemporaryFile(dir=PLACE if PLACE.is_dir() else None)  # noqa: SIM115 - as long as the sample
        weakref.finalize(self, self._file.close)

    @property
    def seen(self) -> Seen | None:
        """The sample, read anew each time; None where no token came."""
        if not self.added:
            return None
        x = torch.empty(len(self.keys), self.width)
        self._file.seek(0)
        self._file.readinto(x.view(-1).numpy().data.cast("B"))  # type: ignore[attr-defined]
        return Seen(x[self._places], self.modality)

    def add(self, x: torch.Tensor, modality: torch.Tensor | None) -> None:
        """x [T, H] and the modality of each [T], to be drawn from."""
        before, self.added, self.width = len(self.keys), self.added + len(x), x.shape[1]
        keys = torch.cat([self.keys, torch.rand(len(x), generator=self.generator)])
        kept = keys.topk(min(self.limit, len(keys)), largest=False).indices.sort().values
        old, new = kept[kept < before], kept[kept >= before] - before
        left = torch.ones(len(kept), dtype=torch.bool)
        left[self._places[old]] = False
        free = left.nonzero().flatten()
        for place, row in zip(free.tolist(), x[new].contiguous().numpy(), strict=True):
            self._file.seek(place * row.nbytes)
            self._file.write(row.data)
        self.keys, self._places = keys[kept], torch.cat([self._places[old], free])
        if modality is not None:
            whole = modality if self.modality is None else torch.cat([self.modality, modality])
            self.modality = whole[kept]
