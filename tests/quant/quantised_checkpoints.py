"""Tiny seeded checkpoints whose weights are quantised as other tools write them, each with its twin of plain floats.

Nothing here uses mocomp. Codes and scales are drawn, packed straight from the published layouts (or by the tool itself), and
turned into floats by formula, or by the tool.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Packed = tuple[dict[str, Tensor], Tensor]
"""The tensors of one weight by what follows its module's name, and the weight [N, K] float32 that they stand for."""
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Pair:
    """One model twice: quantised, and as the floats that those weights stand for."""

    quantised: Path
    floats: Path


def write(source: Path, directory: Path, config: dict[str, Any], pack: Callable[[int, int], Packed]) -> Pair:
    """`source` with every projection of its layers replaced by what `pack(N, K)` draws for it."""
    torch.manual_seed(0)
    quantised, floats = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            quantised[name] = floats[name] = tensor
            continue
        parts, floats[name] = pack(*tensor.shape)
        quantised |= {name.removesuffix(".weight") + own: part for own, part in parts.items()}
    return pair(source, directory, config, quantised, floats)


def write_gpt_oss(source: Path, directory: Path) -> Pair:
    """`source`, of gpt-oss, with its experts in MXFP4; the floats are what transformers makes of them."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    torch.manual_seed(0)
    quantised, floats = {}, {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            quantised[name] = floats[name] = tensor
            continue
        experts, columns, rows = tensor.shape
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
        scales = torch.randint(121, 126, (experts, rows, columns // 32), dtype=torch.uint8)
        quantised |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        floats[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
    config = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    return pair(source, directory, config, quantised, floats)


def pair(source: Path, directory: Path, config: dict, quantised: dict[str, Tensor], floats: dict[str, Tensor]) -> Pair:
    """Both checkpoints on disk, in two directories under `directory`."""
    made = Pair(directory / "quantised", directory / "floats")
    for place, tensors, more in ((made.quantised, quantised, {"quantization_config": config}), (made.floats, floats, {})):
        place.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / "model.safetensors")
        described = json.loads((source / "config.json").read_text()) | more
        (place / "config.json").write_text(json.dumps(described))
    return made


def changed(directory: Path, place: Path, change: Callable[[dict[str, Tensor], dict[str, Any]], None]) -> Path:
    """A copy of a checkpoint at `place`, with its tensors and its quantization_config changed."""
    shutil.copytree(directory, place)
    tensors, config = load_file(place / "model.safetensors"), json.loads((place / "config.json").read_text())
    change(tensors, config["quantization_config"])
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, place / "model.safetensors")
    (place / "config.json").write_text(json.dumps(config))
    return place


def gptq(bits: int, group: int, symmetric: bool, version: int = 1, act_order: bool = False) -> Callable[[int, int], Packed]:
    """As GPTQ lays it out: codes along K and zero points along N in int32, zero points one less in version 1."""

    def pack(rows: int, columns: int) -> Packed:
        size = group if group > 0 else columns
        codes, zeros, scales = _drawn(rows, columns, size, bits, symmetric)
        groups = torch.arange(columns) // size
        if act_order:
            groups = groups[torch.randperm(columns)]
        stored = (zeros - 1) % 2**bits if version == 1 else zeros
        parts = {
            ".qweight": _words(codes.T.numpy().T.copy().T, bits, axis=0),
            ".qzeros": _words(stored.T.numpy(), bits, axis=1),
            ".scales": scales.T.half(),
            ".g_idx": groups.to(torch.int32),
        }
        return parts, (codes - zeros[:, groups]).float() * scales.half().float()[:, groups]

    return pack


def awq(group: int) -> Callable[[int, int], Packed]:
    """As AutoAWQ lays it out for GEMM: codes and zero points along N, the rows of a word in an order of their own."""

    def interleaved(values: Tensor) -> Tensor:
        words = torch.zeros(values.shape[0], values.shape[1] // 8, dtype=torch.int64)
        for word in range(words.shape[1]):
            for place, row in enumerate(AWQ_ORDER):
                words[:, word] |= values[:, word * 8 + row].long() << (4 * place)
        return torch.from_numpy(words.numpy().astype(np.uint32).view(np.int32))

    def pack(rows: int, columns: int) -> Packed:
        codes, zeros, scales = _drawn(rows, columns, group, 4, symmetric=False)
        groups = torch.arange(columns) // group
        parts = {".qweight": interleaved(codes.T), ".qzeros": interleaved(zeros.T), ".scales": scales.T.half()}
        return parts, (codes - zeros[:, groups]).float() * scales.half().float()[:, groups]

    return pack


def fp8(rows: int, columns: int) -> Packed:
    """As DeepSeek-V3 lays it out: a scale to multiply by for each 128 x 128."""
    codes = (torch.randn(rows, columns) * 100).to(torch.float8_e4m3fn)
    scales = torch.rand(-(-rows // 128), -(-columns // 128)) * 1e-3 + 1e-3
    w = codes.float()
    for i in range(rows):
        for g in range(scales.shape[1]):
            w[i, g * 128 : (g + 1) * 128] *= scales[i // 128, g]
    return {".weight": codes, ".weight_scale_inv": scales}, w


def compressed_tensors(format: str, **arguments: Any) -> tuple[dict[str, Any], Callable[[int, int], Packed]]:
    """(quantization_config, pack) of compressed-tensors' own compressor and decompressor."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    weights = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    tool: Any = BaseCompressor.get_value_from_registry(format)
    config = {
        "quant_method": "compressed-tensors",
        "format": format,
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights.model_dump(mode="json")}},
        "ignore": ["lm_head"],
    }

    def pack(rows: int, columns: int) -> Packed:
        tall, wide = {
            "tensor": (rows, columns),
            "channel": (1, columns),
            "group": (1, weights.group_size),
            "block": tuple(weights.block_structure or ()),
        }[str(weights.strategy)]
        tiles = (1,) if weights.strategy == "tensor" else (-(-rows // tall), -(-columns // wide))
        step = 1e-3 if weights.type == "float" else 0.6 / 2**weights.num_bits
        state = {"weight": torch.randn(rows, columns) * 0.15, "weight_scale": (torch.rand(tiles) + 0.5) * step}
        if not weights.symmetric:
            state["weight_zero_point"] = torch.randint(-3, 4, tiles, dtype=torch.int8)
        compressed = tool.compress(state, scheme)
        return {f".{own}": tensor for own, tensor in compressed.items()}, tool.decompress(compressed, scheme)["weight"]

    return config, pack


def _drawn(rows: int, columns: int, group: int, bits: int, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """codes [N, K], zero points [N, G] (the first is 0, where all may differ) and scales [N, G]."""
    codes = torch.randint(0, 2**bits, (rows, columns))
    middle = 2 ** (bits - 1)
    zeros = torch.full((rows, -(-columns // group)), middle)
    if not symmetric:
        zeros += torch.randint(-middle // 4, middle // 4 + 1, zeros.shape)
        zeros[0, 0] = 0
    return codes, zeros, (torch.rand(zeros.shape) + 0.5) * 0.5 / 2**bits


def _words(codes: np.ndarray, bits: int, axis: int) -> Tensor:
    """Codes along an axis into int32, the first in the lowest bits."""
    per = 32 // bits
    words = np.zeros([size // per if d == axis else size for d, size in enumerate(codes.shape)], np.uint32)
    for i in range(codes.shape[axis]):
        at = (i // per, slice(None)) if axis == 0 else (slice(None), i // per)
        words[at] |= np.take(codes, i, axis).astype(np.uint32) << np.uint32(bits * (i % per))
    return torch.from_numpy(words.view(np.int32))
