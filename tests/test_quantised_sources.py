"""Sources that are quantised already: what the target computes on stays as it is, bit for bit, and else becomes floats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mocomp import quantising
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.quant.dequantised import parts_of
from mocomp.report import Report
from tests.calibration.models import opened
from tests.quant import quantised_checkpoints as quantised

SQUARE = {"num_hidden_layers": 1, "moe_intermediate_size": 64}
LAYER = "model.layers.0.mlp.experts"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "checkpoint_format": "gptq_v2"}


@dataclass(frozen=True)
class Kept:
    """A quantised source with its twin of floats, and its artifact."""

    source: Path
    floats: Path
    directory: Path
    report: Report


@pytest.fixture(scope="module")
def pair(checkpoint, tmp_path_factory) -> Callable[[str], quantised.Pair]:
    @cache
    def made(kind: str) -> quantised.Pair:
        plain, place = checkpoint("qwen3_moe", experts=4, **SQUARE), tmp_path_factory.mktemp("pair")
        if kind == "gptq":
            return quantised.write(plain, place, GPTQ | {"sym": False}, quantised.gptq(4, 32, symmetric=False, version=2))
        arguments = {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": True}
        return quantised.write(plain, place, *quantised.compressed_tensors("pack-quantized", **arguments))

    return made


@pytest.fixture(scope="module")
def kept(pair, tmp_path_factory) -> Callable[[str], Kept]:
    """kept(kind): `gptq` with zero points, or `compressed-tensors` without."""

    @cache
    def made(kind: str) -> Kept:
        checkpoints_of, directory = pair(kind), tmp_path_factory.mktemp("kept") / "artifact"
        report = convert(str(checkpoints_of.quantised), directory, ConvertOptions())
        return Kept(checkpoints_of.quantised, checkpoints_of.floats, directory, report)

    return made


def codes_by_hand(w: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    """The integers that a float weight [N, K] of such scales and zero points [N, G] was made of."""
    return (w / scales.repeat_interleave(32, -1) + zeros.repeat_interleave(32, -1)).round()


@pytest.mark.parametrize("kind", ["gptq", "compressed-tensors"])
def test_codes_scales_and_zero_points_are_moved_and_not_made_again(kept, kind):
    made = kept(kind)
    assert made.report.parity.passed and made.report.parity.layers[0].experts_error < 1e-5
    assert made.report.artifact.operators["QMoE"] == 1 and made.report.artifact.operators["MatMulNBits"] >= 4
    assert any("weights stay quantised as the checkpoint has them" in note for note in made.report.notes)
    assert "quantise" not in made.report.seconds and not any("become floats" in note for note in made.report.notes)
    (node,) = [node for node in ir.load(made.directory / "model.onnx").graph if node.op_type == "QMoE"]
    arrays = {i: node.inputs[i].const_value.numpy() for i in (2, 3, 5, 6, 11, 12) if i < len(node.inputs) and node.inputs[i]}
    assert (11 in arrays) == (kind == "gptq")
    floats = load_experts(made.floats)
    for e in range(4):
        for (codes, scales, zeros), name in zip(((2, 3, 11), (5, 6, 12)), ("w_in", "w_out"), strict=True):
            found, scale = nibbles(arrays[codes][e]), torch.from_numpy(arrays[scales][e].copy())
            zero = nibbles(arrays[zeros][e])[:, : scale.shape[1]] if zeros in arrays else torch.full(scale.shape, 8.0)
            assert torch.equal(found, codes_by_hand(floats[name][e], scale, zero))


def nibbles(packed: np.ndarray) -> Tensor:
    return torch.from_numpy(np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1).astype(np.float32))


def load_experts(directory: Path) -> dict[str, Tensor]:
    """In the order of the operator: gate and up rows in turns."""
    weights = load_file(directory / "model.safetensors")
    gate, up, down = (torch.stack([weights[f"{LAYER}.{e}.{p}_proj.weight"] for e in range(4)]) for p in ("gate", "up", "down"))
    return {"w_in": torch.stack([gate, up], 2).flatten(1, 2), "w_out": down}


def test_the_parts_are_recipes_of_the_source_s_own_tensors(pair):
    """Bytes are moved: nothing between the checkpoint and the artifact knows a float."""
    with opened(pair("gptq").quantised) as made:
        notes: list[str] = []
        chosen = quantising.plan(made.job(), notes)
        assert chosen.formats == {} and len(chosen.kept) == 2 + 4
        for name, weight in chosen.kept.items():
            text, parts = parts_of(made.program.recipes[name])
            assert weight.format == text == "int4:32:asym" and {p.dtype for p in parts.values()} == {torch.uint8, torch.float32}


@pytest.mark.parametrize(("options", "operators"), [({"quantize": "float"}, {"MoE"}), ({"quantize": "int8"}, {"QMoE"})])
def test_another_format_can_be_asked_for(pair, tmp_path, options, operators):
    report = convert(str(pair("gptq").quantised), tmp_path / "artifact", ConvertOptions(**options))
    assert report.parity.passed and {"MoE", "QMoE", "MatMulNBits"} & report.artifact.operators.keys() == operators
    assert set(report.artifact.formats.values()) == ({"int8"} if "QMoE" in operators else set())


def test_what_the_target_has_no_operator_for_becomes_floats(checkpoint, tmp_path):
    plain = checkpoint("gpt_oss", hidden_size=64, intermediate_size=64)
    made = quantised.write_gpt_oss(plain, tmp_path)
    report = convert(str(made.quantised), tmp_path / "artifact", ConvertOptions())
    assert report.parity.passed and report.artifact.operators["MoE"] == 2 and report.artifact.formats == {}
    (note,) = [note for note in report.notes if "become floats" in note]
    assert note.startswith("4 quantised weights") and "no QMoE of mxfp4" in note and "CUDA provider" in note


def test_no_experts_are_made_of_quantised_weights(command, pair, tmp_path):
    done = command("upcycle", pair("gptq").quantised, "-o", tmp_path / "made")
    assert done.code == 3 and "its weights are quantised" in done.err and list(tmp_path.iterdir()) == []
