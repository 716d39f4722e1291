"""compressed-tensors checkpoints, as LLM Compressor writes them for vLLM.

pack-quantized, integers of 2, 4 or 8 bits:

    weight_packed     [N, K * bits / 32] int32    codes, along K, lowest bits first; code 0 is -2^(bits - 1)
    weight_shape      [2]                         N, K
    weight_zero_point [N * bits / 32, G] int32    along N, where it is not symmetric

int-quantized, naive-quantized and float-quantized: `weight` [N, K] int8 or float8_e4m3fn, `weight_zero_point` [N, G] int8.
All of them: `weight_scale` [N, G], [N, 1], [1], or of square blocks [N / 128, K / 128]; `weight_g_idx` [K] with act-order.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mocomp.errors import Unsupported
from mocomp.quant.companions import Companions
from mocomp.quant.formats import pack_bits
from mocomp.quant.reading import Scheme, integers, refuse_unless
from mocomp.quant.words import bytes_of, from_columns, rowwise, turned
from mocomp.weights import recipes
from mocomp.weights.arithmetic import pick
from mocomp.weights.checkpoint import Entry
from mocomp.weights.recipes import Recipe

FORMATS = ("dense", "pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", None)
FLOATS = {"channel": "fp8", "tensor": "fp8:tensor"}


@dataclass(frozen=True)
class CompressedTensors(Scheme):
    """w = (code - zero) * scale. `groups` are pairs of the config: modules (a name, re:PATTERN or a class), their settings."""

    name: ClassVar[str] = "compressed-tensors"
    groups: tuple[tuple[str, dict[str, Any]], ...]

    @classmethod
    def of(cls, config: dict[str, Any]) -> CompressedTensors:
        groups = list((config.get("config_groups") or {}).values())
        for settings in (config, *groups):
            refuse_unless(settings, "format", FORMATS, None)
        refuse_unless(config.get("sparsity_config") or {}, "format", ("dense", None), None)
        if (config.get("transform_config") or {}).get("config_groups"):
            raise Unsupported("transform_config: weights that were rotated besides")
        return cls(tuple((target, group.get("weights") or {}) for group in groups for target in group.get("targets", ())))

    def stem(self, name: str, entry: Entry) -> str | None:
        if name.endswith(".weight_packed"):
            return name.removesuffix(".weight_packed")
        quantised = name.endswith(".weight") and entry.dtype in (torch.int8, torch.float8_e4m3fn)
        return name.removesuffix(".weight") if quantised else None

    def weight(self, tensors: Companions) -> Recipe:
        settings = self._settings(tensors)
        packed = tensors.find(".weight_packed")
        kind = settings.get("type", "int")
        if kind == "float" and packed is None:
            return _floats(tensors, settings)
        if kind == "int" and (packed is None or packed.dtype == torch.int32):
            return _integers(tensors, settings, packed)
        raise tensors.unsupported(f"packed weights of type {kind} {settings.get('num_bits')}")

    def _settings(self, tensors: Companions) -> dict[str, Any]:
        """How the weights of a module are quantised: what names it comes before patterns, and these before its class."""
        name = tensors.stem
        named = [settings for target, settings in self.groups if target == name]
        matched = [settings for target, settings in self.groups if target[:3] == "re:" and re.match(target[3:], name)]
        classes = [settings for target, settings in self.groups if target[:1].isupper()]
        if not named + matched + classes:
            raise tensors.bad("it is quantised, but no group of quantization_config has it among its targets")
        return (named + matched + classes)[0]


def _integers(tensors: Companions, settings: dict[str, Any], packed: Recipe | None) -> Recipe:
    bits, strategy = settings.get("num_bits"), _strategy(settings)
    if bits not in (2, 4, 8) or strategy not in ("group", "channel", "tensor"):
        raise tensors.unsupported(f"integers of {bits} bits with a scale for each {strategy}")
    group, symmetric = settings.get("group_size") or 0, settings.get("symmetric", True)
    shape = tensors.take(".weight").shape if packed is None else _shape(tensors, packed, bits)
    format = integers(bits, group, symmetric)
    tiled = tensors.form(format).tiled(shape)
    scales = tensors.scales(".weight_scale", (1, 1) if strategy == "tensor" else tiled)
    parts = {
        "codes": rowwise(tensors.take(".weight"), lambda q: _packed(q, bits)) if packed is None else _cut(packed, shape, bits),
        "scales": pick(scales, 0, [0] * shape[0]) if strategy == "tensor" else scales,
        "zeros": None if symmetric else _zeros(tensors, tiled, bits, packed is not None),
    }
    if symmetric:
        tensors.find(".weight_zero_point")  # which older versions write all the same, all of them 0
    return tensors.weight(format, shape, parts, tensors.order(".weight_g_idx", shape[1], group or shape[1]))


def _floats(tensors: Companions, settings: dict[str, Any]) -> Recipe:
    strategy, block = _strategy(settings), settings.get("block_structure")
    square = block if isinstance(block, str) else "x".join(map(str, block or ()))
    format = FLOATS.get(strategy) or f"fp8:{square or strategy}"
    codes = tensors.take(".weight")
    scales = tensors.scales(".weight_scale", tensors.form(format).tiled(codes.shape))
    return tensors.weight(format, codes.shape, {"codes": codes, "scales": scales})


def _strategy(settings: dict[str, Any]) -> str:
    """What has a scale of its own; where it is not said, the size of groups says it."""
    group = settings.get("group_size")
    return settings.get("strategy") or ("tensor" if group is None else "group" if group > 0 else "channel")


def _shape(tensors: Companions, packed: Recipe, bits: int) -> tuple[int, ...]:
    """(N, K), which the words alone do not tell where the last one is not full."""
    shape = tuple(tensors.value(".weight_shape").tolist())
    if len(shape) != 2 or packed.shape != (shape[0], -(-shape[1] * bits // 32)):
        raise tensors.bad(f"weight_packed is {list(packed.shape)} for a weight {list(shape)} of {bits} bits")
    return shape


def _cut(packed: Recipe, shape: tuple[int, ...], bits: int) -> Recipe:
    """The bytes of words [N, K * bits / 32], without those that fill the last word up."""
    return recipes.slice_of(rowwise(packed, bytes_of), 1, 0, -(-shape[1] * bits // 8))


def _zeros(tensors: Companions, tiled: tuple[int, ...], bits: int, in_words: bool) -> Recipe:
    """The zero points [N, bytes of G], of one type with the codes."""
    rows, groups = tiled
    if not in_words:
        stored = tensors.take(".weight_zero_point")
        plain = recipes.reshape(stored, (1, 1) if stored.shape in ((), (1,)) else tiled)
        return rowwise(plain if plain.shape == tiled else pick(plain, 0, [0] * rows), lambda q: _packed(q, bits))
    words = tensors.take(".weight_zero_point", -(-rows * bits // 32), groups)
    return from_columns(recipes.permute(words, (1, 0)), lambda w: turned(w, bits), 32 // bits, rows)


def _packed(signed: torch.Tensor, bits: int) -> torch.Tensor:
    """Integers from -2^(bits - 1) on -> bytes of codes from 0 on."""
    return pack_bits((signed.to(torch.int16) + (1 << (bits - 1))).to(torch.uint8), bits)
