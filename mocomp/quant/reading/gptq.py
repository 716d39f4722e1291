"""GPTQ checkpoints, as AutoGPTQ and GPTQModel write them.

qweight [K * bits / 32, N] int32    codes, along K, lowest bits first
qzeros  [G, N * bits / 32] int32    zero points, along N; one less than they are, unless the format is gptq_v2
scales  [G, N]
g_idx   [K]                         the group of each column; may be missing where it is in order
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mocomp.errors import Unsupported
from mocomp.quant.companions import Companions
from mocomp.quant.reading import Scheme, integers, refuse_unless
from mocomp.quant.words import bytes_of, from_columns, turned, unpack_words
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Entry
from mocomp.weights.recipes import Recipe


@dataclass(frozen=True)
class GPTQ(Scheme):
    """w = (code - zero) * scale. `less` is how much less zero points are stored than they are."""

    name: ClassVar[str] = "gptq"
    bits: int
    group: int
    symmetric: bool
    less: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> GPTQ:
        overrides = [key for key in config.get("dynamic") or {} if not key.startswith("-:")]
        if overrides:
            raise Unsupported(f"settings of their own for some modules: {overrides[0]}")
        refuse_unless(config, "pack_dtype", ("int32", None), None)
        written = config.get("checkpoint_format") or config.get("format") or "gptq"
        version = refuse_unless({"checkpoint_format": written}, "checkpoint_format", ("gptq", "gptq_v2"), None)
        bits = refuse_unless(config, "bits", (2, 4, 8), None)
        return cls(bits, int(config.get("group_size", 128)), bool(config.get("sym", True)), 1 if version == "gptq" else 0)

    def stem(self, name: str, entry: Entry) -> str | None:
        return name.removesuffix(".qweight") if name.endswith(".qweight") else None

    def weight(self, tensors: Companions) -> Recipe:
        format = tensors.form(integers(self.bits, self.group, self.symmetric)).text
        qweight = tensors.words(".qweight")
        columns, rows = qweight.shape[0] * 32 // self.bits, qweight.shape[1]
        group = self.group if self.group > 0 else columns
        groups = -(-columns // group)
        parts = {
            "codes": from_columns(qweight, lambda words: bytes_of(words.t())),
            "scales": recipes.cast(recipes.permute(tensors.take(".scales", groups, rows), (1, 0)), torch.float32),
            "zeros": self._zeros(tensors, groups, rows),
        }
        order = tensors.order(".g_idx", columns, group)
        return tensors.weight(format, (rows, columns), parts, order)

    def _zeros(self, tensors: Companions, groups: int, rows: int) -> Recipe | None:
        """The zero points; None where all are the middle code, as they have to be where the config says symmetric."""
        qzeros = tensors.take(".qzeros", groups, -(-rows * self.bits // 32))
        if not self.symmetric:
            return from_columns(qzeros, lambda words: turned(words, self.bits, self.less), 32 // self.bits, rows)
        stored = unpack_words(tensors.value(".qzeros"), self.bits)[:, :rows]
        middle = (1 << (self.bits - 1)) - self.less
        if bool((stored != middle).any()):
            found = int(stored[stored != middle][0])
            raise tensors.bad(f"qzeros holds {found}, which `sym` and `checkpoint_format` of the config make {middle}")
        return None
