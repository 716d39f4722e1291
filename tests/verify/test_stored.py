"""What lies in an artifact is compared with what was quantised, bit for bit: each fault names its layer and its expert."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from safetensors.torch import load_file

from mocomp.commands.parity import ParityOptions
from mocomp.commands.parity import parity as prove_again
from mocomp.errors import ParityFailed
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.quant.formats import parse
from mocomp.quant.weight import QuantisedWeight
from mocomp.report import Report
from mocomp.verify import stored
from mocomp.weights.recipes import literal

LAYER = "model.layers.0.mlp.experts"
W_IN, W_OUT = f"{LAYER}.gate_up_proj", f"{LAYER}.down_proj"
HEAD = "lm_head.weight"
TARGET = open_target("onnxruntime")


@dataclass(frozen=True)
class Artifact:
    """A converted model, and its packed weights made once more from the checkpoint."""

    directory: Path
    report: Report
    weights: dict[str, QuantisedWeight]

    def compare(self) -> None:
        stored.compare(self.weights, nothing, TARGET, self.directory, self.report.artifact)

    def edit(self, name: str, change: Callable[[np.ndarray], None]) -> None:
        """Change the bytes of one tensor in model.onnx.data."""
        tensor = ir.load(self.directory / "model.onnx").graph.initializers[name].const_value
        data = np.memmap(self.directory / "model.onnx.data", np.uint8, "r+", tensor.offset, (tensor.length,))
        change(data.view(tensor.dtype.numpy()).reshape(tuple(tensor.shape)))
        data.flush()


def nothing(name: str, start: int, stop: int) -> None:
    raise AssertionError(name)


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory) -> Artifact:
    source = checkpoint("qwen3_moe", num_hidden_layers=1, moe_intermediate_size=64)
    directory = tmp_path_factory.mktemp("stored") / "artifact"
    report = convert(str(source), directory, ConvertOptions(quantize="int4", quantize_dense="int8"))
    floats = load_file(source / "model.safetensors")
    one = [[floats[f"{LAYER}.{e}.{p}_proj.weight"] for p in ("gate", "up", "down")] for e in range(8)]
    meant = {W_IN: torch.stack([torch.cat(w[:2]) for w in one]), W_OUT: torch.stack([w[2] for w in one])}
    meant |= {name: w for name, w in floats.items() if ("self_attn" in name and w.dim() == 2) or name == HEAD}
    return Artifact(directory, report, {n: rounded(w, "int4:32" if "experts" in n else "int8:32") for n, w in meant.items()})


def rounded(w: torch.Tensor, text: str) -> QuantisedWeight:
    form = parse(text)
    grid = form.fit(w)
    parts = form.pack(form.encode(w, grid), grid).tensors()
    return QuantisedWeight(text, w.shape[-1], {name: literal(tensor) for name, tensor in parts.items()})


@pytest.fixture
def artifact(made, tmp_path) -> Artifact:
    """One that a test may damage."""
    return Artifact(shutil.copytree(made.directory, tmp_path / "artifact"), made.report, made.weights)


def test_what_was_quantised_is_what_is_there(made):
    assert set(made.weights) == set(made.report.artifact.formats)
    made.compare()


def swap_experts(bank: np.ndarray) -> None:
    bank[[2, 5]] = bank[[5, 2]]


def flip_a_nibble(codes: np.ndarray) -> None:
    codes[3, 10, 7] ^= 0x10


def shift_by_one_block(scales: np.ndarray) -> None:
    scales[4] = np.roll(scales[4], 1, -1)


def exchange_gate_and_up(rows: np.ndarray) -> None:
    rows[6] = rows[6].reshape(-1, 2, rows.shape[-1])[:, ::-1].reshape(rows[6].shape)


FAULTS = {
    "two experts' codes swapped": ({f"{W_IN}.codes": swap_experts}, 2, W_IN),
    "two experts swapped whole": ({f"{w}.{p}": swap_experts for w in (W_IN, W_OUT) for p in ("codes", "scales")}, 2, W_IN),
    "one nibble flipped": ({f"{W_OUT}.codes": flip_a_nibble}, 3, W_OUT),
    "scales one block off": ({f"{W_OUT}.scales": shift_by_one_block}, 4, W_OUT),
    "gate and up exchanged": ({f"{W_IN}.codes": exchange_gate_and_up, f"{W_IN}.scales": exchange_gate_and_up}, 6, W_IN),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_named(artifact, fault):
    edits, expert, name = FAULTS[fault]
    for tensor, change in edits.items():
        artifact.edit(tensor, change)
    with pytest.raises(ParityFailed, match="holds other weights than were quantised") as caught:
        artifact.compare()
    assert caught.value.where == f"{LAYER}, expert {expert}, {name}"


def test_a_fault_in_a_linear_layer_is_found_and_named(artifact):
    def change(codes: np.ndarray) -> None:
        codes[1, 1, 1] ^= 1

    artifact.edit(f"{HEAD}.codes", change)
    with pytest.raises(ParityFailed) as caught:
        artifact.compare()
    assert caught.value.where == "lm_head"


def test_a_weight_that_is_not_there_is_missed(made):
    with pytest.raises(ParityFailed, match="nothing was found"):
        Artifact(made.directory, made.report, made.weights | {"elsewhere": made.weights[HEAD]}).compare()


def without_checksums(directory: Path) -> None:
    """A report as older versions wrote it."""
    data = json.loads((directory / "mocomp.json").read_text())
    (directory / "mocomp.json").write_text(json.dumps({key: value for key, value in data.items() if key != "files"}))


def test_parity_again_is_of_the_packed_weights_that_were_made(artifact):
    """Their floats are gone, so another expert's codes are told from right ones by the checksums alone, where there are any.
    What else the artifact holds is held to the original."""
    assert prove_again(artifact.directory, options=ParityOptions(seed=1)).passed
    artifact.edit(f"{W_IN}.codes", swap_experts)
    with pytest.raises(ParityFailed, match=f"is not what was made, in the bytes of .*{W_IN}"):
        prove_again(artifact.directory, options=ParityOptions(seed=1))
    without_checksums(artifact.directory)
    older = prove_again(artifact.directory, options=ParityOptions(seed=1))
    assert older.passed and any("as they stand" in note for note in older.notes)
    artifact.edit("model.norm.weight", lambda w: np.multiply(w, 1.01, out=w))
    assert any(
        "logits off by" in failure for failure in prove_again(artifact.directory, options=ParityOptions(seed=1)).failures
    )


def test_parity_again_tells_a_router_that_was_changed(artifact):
    without_checksums(artifact.directory)
    artifact.edit("model.layers.0.mlp.gate.weight", lambda w: np.copyto(w, w[::-1].copy()))
    assert any(
        "tokens chose other experts" in failure
        for failure in prove_again(artifact.directory, options=ParityOptions(seed=1)).failures
    )
