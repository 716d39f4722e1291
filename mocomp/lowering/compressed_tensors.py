"""Weights as the package compressed-tensors stores them, which transformers and vLLM read.

    integers   weight_packed [N, K * bits / 32] int32, weight_scale [N, G], weight_shape [2],
               weight_zero_point [N * bits / 32, G] int32 where they are asymmetric: packed along N
    fp8        weight [N, K] float8_e4m3fn, weight_scale [N, 1], [1] or [N / 128, K / 128]
    mxfp4      weight_packed [N, K / 2] uint8, weight_scale [N, K / 32] uint8

Scales stay float32. Dimension letters: E experts, N rows (outputs), K columns (inputs), G groups of columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mocomp.lowering.checkpoint_places import Place
from mocomp.quant.formats import Format, pack_bits, unpack_bits
from mocomp.quant.integer import Integer
from mocomp.quant.words import rowwise
from mocomp.weights import recipes
from mocomp.weights.recipes import Apply, Recipe

FORMATS = {"fp8": "float-quantized", "mxfp4": "mxfp4-pack-quantized"}
"""What the package calls the way of storing; integers are all pack-quantized."""
FLOATS: dict[str, dict[str, Any]] = {
    "fp8": {"num_bits": 8, "strategy": "channel"},
    "fp8:tensor": {"num_bits": 8, "strategy": "tensor"},
    "fp8:128x128": {"num_bits": 8, "strategy": "block", "block_structure": [128, 128]},
    "mxfp4": {"num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
}

NVFP4 = (
    "nvfp4 comes back as other numbers: the package rounds it to bfloat16, and transformers 5.23 drops the global scale of "
    "experts; take mxfp4"
)


def scheme(form: Format) -> dict[str, Any]:
    """What a group of `quantization_config` says of weights in a format."""
    if isinstance(form, Integer):
        group = {"strategy": "group", "group_size": form.block} if form.block else {"strategy": "channel"}
        weights = {"num_bits": form.bits, "type": "int", "symmetric": form.symmetric} | group
    else:
        weights = {"type": "float", "symmetric": True} | FLOATS[form.text]
    return {"format": FORMATS.get(form.name, "pack-quantized"), "weights": weights | {"dynamic": False}}


def obstacle(form: Format, shape: tuple[int, ...], places: list[Place]) -> str | None:
    """Why a weight of that shape, which is stored at `places`, cannot be in a format, or None."""
    if not isinstance(form, Integer) and form.text not in FLOATS:
        return NVFP4 if form.name == "nvfp4" else f"compressed-tensors has no {form.text}"
    block = form.block if form.tile[0] == 1 else 0
    if block and shape[-1] % block:
        return f"blocks of {block} do not divide its {shape[-1]} columns, which compressed-tensors wants of {form.text}"
    if any(place.start % max(form.tile[0], 1) for place in places):
        return f"a block of {form.tile[0]} rows is in two tensors of the checkpoint at once"
    return None


def tensors(form: Format, shape: tuple[int, ...], parts: dict[str, Recipe], place: Place) -> dict[str, Recipe]:
    """The tensors, by what follows the module's name, of the matrix at a place of a weight of `shape` whose parts these are."""
    codes = place.of(parts["codes"], 1)
    scales = place.of(parts["scales"], form.tile[0])
    if form.name == "fp8":
        return {"weight": codes, "weight_scale": recipes.reshape(scales, (1,)) if form.tile == (0, 0) else scales}
    if form.name == "mxfp4":
        return {"weight_packed": codes, "weight_scale": rowwise(scales, lambda s: s.view(torch.uint8))}
    rows = place.stop - place.start
    made = {
        "weight_packed": rowwise(codes, _words),
        "weight_scale": scales,
        "weight_shape": recipes.literal(torch.tensor([rows, shape[-1]])),
    }
    return made | ({"weight_zero_point": _zeros(form, place.of(parts["zeros"], 1), scales.shape)} if "zeros" in parts else {})


def _words(packed: Tensor) -> Tensor:
    """[N, bytes] uint8 -> [N, bytes / 4] int32, the first byte lowest; the last word is filled up with zeros."""
    full = torch.nn.functional.pad(packed, (0, -packed.shape[-1] % 4))
    return full.flatten().view(torch.int32).unflatten(0, (full.shape[0], -1))


def _zeros(form: Format, zeros: Recipe, shape: tuple[int, ...]) -> Recipe:
    """Zero points [N, bytes of G] -> [N * bits / 32, G] int32; `shape` is (N, G)."""
    rows, groups = shape

    def turned(packed: list[Tensor]) -> Tensor:
        codes = unpack_bits(packed[0], form.bits, groups)
        return _words(pack_bits(codes.t().contiguous(), form.bits)).t().contiguous()

    return Apply((-(-rows * form.bits // 32), groups), torch.int32, turned, (zeros,))
