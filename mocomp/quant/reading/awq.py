"""AWQ checkpoints, as AutoAWQ writes them for its GEMM kernels.

qweight [K, N / 8] int32    codes of 4 bits, along N, eight to a word in the order 0 2 4 6 1 3 5 7
qzeros  [G, N / 8] int32    zero points, in the same order
scales  [G, N]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mocomp.quant.companions import Companions
from mocomp.quant.formats import pack_bits
from mocomp.quant.reading import Scheme, integers, refuse_unless
from mocomp.quant.words import from_columns, unpack_words
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Entry
from mocomp.weights.recipes import Recipe

PER_WORD = 8
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word, counted from the lowest bits, each of its eight rows is."""


@dataclass(frozen=True)
class AWQ(Scheme):
    """w = (code - zero) * scale."""

    name: ClassVar[str] = "awq"
    group: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> AWQ:
        refuse_unless(config, "bits", (4,), 4)
        refuse_unless(config, "zero_point", (True,), True)
        written = str(config.get("version") or config.get("format") or "gemm").lower()
        refuse_unless({"version": written}, "version", ("gemm",), None)
        return cls(int(config.get("group_size", 128)))

    def stem(self, name: str, entry: Entry) -> str | None:
        return name.removesuffix(".qweight") if name.endswith(".qweight") else None

    def weight(self, tensors: Companions) -> Recipe:
        qweight = tensors.words(".qweight")
        columns, words = qweight.shape
        rows = words * PER_WORD
        groups = -(-columns // self.group) if self.group > 0 else 1
        scales = tensors.take(".scales", groups, rows)
        parts = {
            "codes": from_columns(qweight, _rows, PER_WORD),
            "scales": recipes.cast(recipes.permute(scales, (1, 0)), torch.float32),
            "zeros": from_columns(tensors.take(".qzeros", groups, words), _rows, PER_WORD),
        }
        return tensors.weight(integers(4, self.group, symmetric=False), (rows, columns), parts)


def _rows(words: torch.Tensor) -> torch.Tensor:
    """words [A, w] int32 -> [8 w, A / 2] uint8."""
    codes = unpack_words(words, 4).unflatten(-1, (-1, PER_WORD))[..., PLACES].flatten(-2)
    return pack_bits(codes.t(), 4)
