"""FP8 checkpoints as DeepSeek-V3 introduced them: 8-bit floats with a scale for each square block.

weight           [N, K] float8_e4m3fn
weight_scale_inv [N / 128, K / 128]    what to multiply by; a scalar where the config has no `weight_block_size`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mocomp.quant.companions import Companions
from mocomp.quant.reading import Scheme
from mocomp.weights.checkpoint import Entry
from mocomp.weights.recipes import Recipe


@dataclass(frozen=True)
class FP8(Scheme):
    """w = code * scale. Blocks at the edges may be smaller."""

    name: ClassVar[str] = "fp8"
    format: str

    @classmethod
    def of(cls, config: dict[str, Any]) -> FP8:
        block = config.get("weight_block_size")
        return cls("fp8:tensor" if block is None else "fp8:" + "x".join(map(str, block)))

    def stem(self, name: str, entry: Entry) -> str | None:
        return name.removesuffix(".weight") if name.endswith(".weight") and entry.dtype == torch.float8_e4m3fn else None

    def weight(self, tensors: Companions) -> Recipe:
        codes = tensors.take(".weight")
        scales = tensors.scales(".weight_scale_inv", tensors.form(self.format).tiled(codes.shape))
        return tensors.weight(self.format, codes.shape, {"codes": codes, "scales": scales})
