"""gpt-oss: experts in MXFP4, the microscaling format of the Open Compute Project.

gate_up_proj_blocks [E, 2F, H / 32, 16] uint8    codes of 32 columns, two to a byte, the first in the low bits
gate_up_proj_scales [E, 2F, H / 32] uint8        exponents of 2, 127 more than they are
down_proj_blocks    [E, H, F / 32, 16], down_proj_scales [E, H, F / 32]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mocomp.quant.companions import Companions
from mocomp.quant.reading import Scheme
from mocomp.quant.words import rowwise
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Entry
from mocomp.weights.recipes import Recipe

BLOCK_BYTES = 16


@dataclass(frozen=True)
class MXFP4(Scheme):
    """w = code * 2^exponent. The class in transformers holds experts transposed, [E, K, N]; experts are read one by one."""

    name: ClassVar[str] = "mxfp4"
    ending: ClassVar[str] = ""

    @classmethod
    def of(cls, config: dict[str, Any]) -> MXFP4:
        return cls()

    def stem(self, name: str, entry: Entry) -> str | None:
        return name.removesuffix("_blocks") if name.endswith("_blocks") else None

    def weight(self, tensors: Companions) -> Recipe:
        blocks = tensors.take("_blocks")
        if len(blocks.shape) != 4 or blocks.shape[-1] != BLOCK_BYTES:
            raise tensors.bad(f"{tensors.stem}_blocks is {list(blocks.shape)}, expected [E, N, K / 32, {BLOCK_BYTES}]")
        experts, rows, groups, _ = blocks.shape
        scales = tensors.take("_scales", experts, rows, groups)
        shape = (experts, rows, groups * BLOCK_BYTES * 2)
        parts = {
            "codes": recipes.reshape(blocks, (experts, rows, groups * BLOCK_BYTES)),
            "scales": rowwise(scales, lambda exponents: exponents.view(torch.float8_e8m0fnu)),
        }
        return recipes.permute(tensors.weight("mxfp4", shape, parts), (0, 2, 1))
