"""Experts that no operator of ONNX Runtime runs are called as functions, which run the chosen ones only, and are proven so."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from mocomp import tuning
from mocomp.commands.parity import ParityOptions, parity
from mocomp.lowering.branches import Turn
from mocomp.lowering.onnx_session import load
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import NAME, read
from mocomp.weights.record import seal

HIDDEN, WIDTH, CHOSEN = 16, 24, 2
DYNAMIC = f"x=tokens,{HIDDEN}"
ACTIVATIONS = {"gelu": functional.gelu, "relu2": lambda h: functional.relu(h).square()}


class FeedForward(nn.Module):
    """An expert; gated by silu where `activation` is "swiglu"."""

    def __init__(self, activation: str):
        super().__init__()
        self.activation = activation
        self.up, self.down = nn.Linear(HIDDEN, WIDTH), nn.Linear(WIDTH, HIDDEN)
        self.gate = nn.Linear(HIDDEN, WIDTH) if activation == "swiglu" else None

    def forward(self, x):
        if self.gate is not None:
            return self.down(functional.silu(self.gate(x)) * self.up(x))
        return self.down(ACTIVATIONS[self.activation](self.up(x)))


class Mixture(nn.Module):
    """A loop over the experts that tokens chose."""

    def __init__(self, activation: str, experts: int):
        super().__init__()
        self.router = nn.Linear(HIDDEN, experts)
        self.experts = nn.ModuleList(FeedForward(activation) for _ in range(experts))

    def forward(self, x):
        weights, ids = self.router(x).softmax(-1).topk(CHOSEN)
        y = torch.zeros_like(x)
        for e, expert in enumerate(self.experts):
            token, place = torch.where(ids == e)
            y = y.index_add(0, token, expert(x[token]) * weights[token, place, None])
        return y


class Layers(nn.Module):
    """One mixture after the other."""

    def __init__(self, *activations: str, experts: int = 8):
        super().__init__()
        self.layers = nn.ModuleList(Mixture(activation, experts) for activation in activations)

    def forward(self, x):
        return functools.reduce(lambda h, layer: h + layer(h), self.layers, x)


def gelu() -> nn.Module:
    return Layers("gelu", "gelu")


def relu2() -> nn.Module:
    return Layers("relu2", "relu2")


def mixed() -> nn.Module:
    """An operator runs the second."""
    return Layers("gelu", "swiglu", "gelu")


def many() -> nn.Module:
    return Layers("gelu", "gelu", experts=24)


def changing() -> nn.Module:
    """The third expert of the first layer has other weights than `gelu`'s."""
    changed = gelu()
    with torch.no_grad():
        changed.layers[0].experts[2].down.weight.mul_(1.01)  # type: ignore[union-attr, index]
    return changed


@pytest.fixture
def convert_to(tmp_path):
    """convert_to(build, **options): the artifact of a module, and the report."""
    np.savez(tmp_path / "x.npz", x=np.random.default_rng(0).standard_normal((11, HIDDEN)).astype(np.float32))

    def made(build, **options):
        torch.manual_seed(3)
        name, inputs = f"{__name__}:{build.__name__}", str(tmp_path / "x.npz")
        report = convert(name, tmp_path / build.__name__, ConvertOptions(inputs=inputs, dynamic=(DYNAMIC,), **options))
        return tmp_path / build.__name__, report

    return made


@pytest.mark.parametrize("build", [gelu, relu2])
def test_experts_are_called_and_each_layer_is_proven(convert_to, build):
    directory, report = convert_to(build)
    artifact, names = report.artifact, ["layers.0", "layers.1"]
    assert [node.op_type for node in load(directory).graph].count("Experts") == 2
    assert [mixture.layer for mixture in artifact.mixtures] == names and all(m.ids and m.limits for m in artifact.mixtures)
    assert report.parity.passed and [layer.layer for layer in report.parity.layers] == names
    assert artifact.operators["Scan"] == 1  # layers that are alike share a function


def test_nodes_do_not_grow_with_the_experts(convert_to):
    assert convert_to(many)[1].artifact.nodes == convert_to(gelu)[1].artifact.nodes


def test_a_changed_weight_of_a_called_expert_is_seen(convert_to):
    directory, _ = convert_to(gelu)
    torch.manual_seed(3)
    found = parity(directory, options=ParityOptions(reference=f"{__name__}:changing", trust_remote_code=True))
    assert any("layers.0" in failure for failure in found.failures) and not any("layers.1" in f for f in found.failures)


def test_fused_and_called_mixtures_stand_in_one_graph_and_the_fused_are_tuned(convert_to):
    directory, report = convert_to(mixed)
    assert {mixture.layer: bool(mixture.ids) for mixture in report.artifact.mixtures} == {
        "layers.0": True,
        "layers.1": False,
        "layers.2": True,
    }
    limits = {mixture.layer: mixture.limits for mixture in report.artifact.mixtures}
    fused = [i for i, mixture in enumerate(report.artifact.mixtures) if not mixture.ids]
    artifact = tuning.rewrite(directory, report.artifact, {fused[0]: (Turn("fused", 5), Turn("sorted"))})
    assert {m.layer: m.limits for m in artifact.mixtures} == limits | {"layers.1": (5,)}
    data = read(directory)
    data["artifact"]["mixtures"] = [dataclasses.asdict(mixture) for mixture in artifact.mixtures]
    (directory / NAME).write_text(json.dumps(data))
    seal(directory, NAME)
    torch.manual_seed(3)
    assert parity(directory, options=ParityOptions(trust_remote_code=True)).failures == []


def test_called_experts_are_shared_out_among_ranks(checkpoint, tmp_path):
    """Gated by gelu, of which there is no operator; the report has the proof of the ranks."""
    source = str(checkpoint("mixtral", hidden_act="gelu"))
    report = convert(source, tmp_path / "out", ConvertOptions(expert_parallel=2))
    assert all(mixture.ids for mixture in report.artifact.mixtures)
    assert report.expert_parallel.proof.parity < 1e-4
    assert [load(tmp_path / "out" / f"rank_{i}", "experts_0.onnx").opset_imports[""] for i in range(2)] == [23, 23]
