"""Packed weights in ONNX Runtime: QMoE and MatMulNBits compute with the very weights that the formats stand for.

Dimension letters: T tokens, E experts, N rows, K columns.
"""

from __future__ import annotations

import functools
import shutil
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch.nn import functional

from mocomp.errors import Unsupported
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.ir.specs import spell
from mocomp.models.source import open_source
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.passes import run
from mocomp.passes.quantize_weights import QuantizeWeights
from mocomp.pipeline import convert
from mocomp.quant.formats import parse
from mocomp.quant.weight import QuantisedWeight, promised
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.verify import stored
from mocomp.verify.converted import Converted
from mocomp.verify.quality import Quality
from mocomp.verify.tolerance import TABLE
from mocomp.verify.verdict import verify
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.writer import Writer
from tests.programs import Formula, Traced, trace

SIZE, EXPERTS = 256, 3
"""Hidden and width: a block of every size divides it, and rows of w_in are of the shapes that some kernels are made for."""
EXACT = (
    "int2:16", "int2:16:asym", "int4:16", "int4:16:asym", "int4:32", "int4:32:asym", "int4:64", "int4:64:asym",
    "int4:128", "int4:128:asym", "int4:256", "int4:256:asym", "int4", "int4:asym", "int8", "int8:asym", "int2", "int2:asym",
)  # fmt: skip
ROUNDING = ("int8:16", "int8:32", "int8:256:asym", "int2:32", "int2:64:asym")
"""Formats for which the CPU's operator rounds activations to 8 bits."""
LINEAR = ("int2:16", "int2:64:asym", "int4:16", "int4:32:asym", "int4:256", "int8:16:asym", "int8:32")
REFUSED = {
    "fp8": "CUDA provider", "fp8:tensor": "CUDA provider", "fp8:128x128": "CUDA provider",
    "nvfp4": "the CUDA provider has it (quant_type nvfp4)", "mxfp4": "so take nvfp4 for that one",
}  # fmt: skip
TARGET = open_target("onnxruntime")


KINDS = {"glu": GLU("silu", 1.702, 1.0, 3.0), "gelu": FFN("gelu_tanh"), "relu": FFN("relu"), "identity": FFN("identity")}
"""With biases, and the gated ones with a limit."""


def linear(m: Formula, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, m.w, m.b)


def mixture(kind: str) -> Formula:
    expert = KINDS[kind]
    rows = SIZE * (2 if expert.gated else 1)

    def forward(m: Formula, x: torch.Tensor) -> torch.Tensor:
        ids, shares = torch.ops.mocomp.route(functional.linear(x, m.gate), [], spell(SoftmaxTopK(2, normalize=True)))
        return torch.ops.mocomp.experts(x, ids, shares, m.w_in, m.b_in, m.w_out, m.b_out, spell(expert)) / 8

    shapes = {"w_in": (EXPERTS, rows, SIZE), "b_in": (EXPERTS, rows), "w_out": (EXPERTS, SIZE, SIZE), "b_out": (EXPERTS, SIZE)}
    return Formula(forward, gate=(EXPERTS, SIZE), **shapes)


def chain() -> torch.nn.Module:
    """A linear layer, and a mixture of each kind behind it."""
    mixtures = {kind: mixture(kind) for kind in KINDS}
    return torch.nn.Sequential(OrderedDict(linear=Formula(linear, w=(SIZE, SIZE), b=(SIZE,)), **mixtures))


class Layers(torch.nn.ModuleList):
    """Each of its modules on x."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(module(x) for module in self)


@dataclass
class Packed:
    """A program of one module for each format, with its experts or its linear layers packed."""

    traced: Traced
    weights: dict[str, QuantisedWeight]
    texts: tuple[str, ...]
    linear: bool

    @classmethod
    def of(cls, texts: tuple[str, ...], linear: bool = False) -> Packed:
        traced = trace(Layers([chain() for _ in texts]), 5, SIZE)
        traced.tensors |= {name: w / w.shape[-1] ** 0.5 for name, w in traced.tensors.items() if w.dim() > 1}
        names = ["linear.w"] if linear else [f"{kind}.{name}" for kind in KINDS for name in ("w_in", "w_out")]
        weights = {f"{i}.{name}": packed(traced, f"{i}.{name}", text) for i, text in enumerate(texts) for name in names}
        for step in (QuantizeWeights(weights), *TARGET.passes()):
            run(step, traced.program)
        return cls(traced, weights, texts, linear)

    def errors(self, directory: Path) -> dict[str, float]:
        """How far ONNX Runtime is from the meaning of mocomp's ops; what is stored is compared bit for bit."""
        artifact = TARGET.lower(self.traced.program, directory, Writer(self.traced.read))
        stored.compare(self.weights, self.traced.read, TARGET, directory, artifact)
        packed = {name: artifact.operators[name] for name in ("QMoE", "MatMulNBits") if name in artifact.operators}
        assert packed == ({"MatMulNBits": len(self.texts)} if self.linear else {"QMoE": len(KINDS) * len(self.texts)})
        found = TARGET.open(directory).run({"x": self.traced.inputs["x"].numpy()})
        return {
            text: float(np.abs(found[f"y{i}"] - y.numpy()).max() / y.abs().max())
            for i, (text, y) in enumerate(zip(self.texts, self.traced.run(), strict=True))
        }


def packed(traced: Traced, name: str, text: str) -> QuantisedWeight:
    """A weight rounded to a format, its parts among the tensors."""
    form, w = parse(text), traced.tensors[name]
    grid = form.fit(w)
    traced.tensors |= {f"{name}.{part}": t for part, t in form.pack(form.encode(w, grid), grid).tensors().items()}
    return promised(name, tuple(w.shape), form)


def test_experts_of_every_format_that_the_cpu_has(tmp_path):
    program = Packed.of(EXACT)
    assert TARGET.gaps(program.traced.program) == []
    errors = program.errors(tmp_path)
    assert not any(TARGET.rounds_activations(parse(text)) for text in EXACT)
    assert max(errors.values()) < 1e-5, errors


def test_formats_whose_operator_rounds_activations_are_known_and_within_their_tolerance(tmp_path):
    errors = Packed.of(ROUNDING).errors(tmp_path)
    assert all(TARGET.rounds_activations(parse(text)) for text in ROUNDING)
    assert all(1e-4 < error < 3 * TABLE["onnxruntime", "int8 activations"].experts for error in errors.values()), errors


def test_linear_layers_of_every_format_that_the_cpu_has(tmp_path):
    program = Packed.of(LINEAR, linear=True)
    assert TARGET.gaps(program.traced.program) == []
    errors = program.errors(tmp_path)
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize("linear", [False, True])
def test_gaps_name_the_layer_the_format_and_who_has_it(linear):
    gaps = TARGET.gaps(Packed.of(tuple(REFUSED), linear).traced.program)
    assert len(gaps) == len(REFUSED) * (1 if linear else len(KINDS))
    for i, (text, provider) in enumerate(REFUSED.items()):
        own = [str(gap) for gap in gaps if gap.where == str(i) or gap.where.startswith(f"{i}.")]
        assert own and all(text in gap for gap in own), gaps
        assert linear or all(provider in gap for gap in own)


SQUARE = {"num_hidden_layers": 1}
FAMILIES = {
    "mixtral": ({"intermediate_size": 64}, {"quantize": "int4:32:asym", "algorithm": "awq"}),
    "qwen3_moe": ({"moe_intermediate_size": 64}, {"quantize": "int4", "accuracy_level": 4}),
    "gpt_oss": ({}, {"quantize": "int8"}),
    "bert": ({"hidden_act": "gelu_pytorch_tanh"}, {"quantize": "int4:16", "quantize_dense": "int8"}),
    "llama": ({"tie_word_embeddings": True}, {"quantize_dense": "int4"}),
}


@pytest.fixture(scope="module")
def made(checkpoint, upcycled, tmp_path_factory):
    """made(family): (source, directory, report); bert has plain experts of mocomp's own making in place of its blocks."""

    @functools.cache
    def of(family: str):
        changes, options = FAMILIES[family]
        changes = (SQUARE if family != "gpt_oss" else {}) | changes
        source = upcycled(family, tuple(changes.items())) if family == "bert" else checkpoint(family, **changes)
        directory = tmp_path_factory.mktemp(family) / "artifact"
        return source, directory, convert(str(source), directory, ConvertOptions(**options))

    return of


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_equal_the_model_of_their_weights(made, family):
    report = made(family)[2]
    assert report.parity.passed and report.parity.worst < 1e-4
    assert all(layer.experts_error < 1e-5 for layer in report.parity.layers)
    operators, options = report.artifact.operators, FAMILIES[family][1]
    assert operators.get("QMoE", 0) == len(report.parity.layers) and ("QMoE" in operators) == ("quantize" in options)
    assert "MoE" not in operators
    assert ("MatMulNBits" in operators) == ("quantize_dense" in options)
    assert report.quality[-1].format == "artifact" and 1e-5 < report.quality[-1].error < 0.6


def test_a_tied_head_is_packed_and_its_embedding_is_not(made):
    _, directory, report = made("llama")
    initializers = ir.load(directory / "model.onnx").graph.initializers
    embedding = initializers["lm_head.weight.floats"]
    assert embedding.dtype == ir.DataType.FLOAT and tuple(embedding.shape) == (128, 64)
    assert initializers["lm_head.weight.codes"].const_value.nbytes == 128 * 64 // 2
    assert report.artifact.linears["lm_head.weight"] == "lm_head"


def nodes(directory: Path) -> list[ir.Node]:
    return [node for node in ir.load(directory / "model.onnx").graph if node.op_type in ("QMoE", "MatMulNBits")]


def test_accuracy_is_asked_for_in_the_artifact_left_out_of_parity_and_told_in_quality(made, tmp_path):
    source, directory, report = made("qwen3_moe")
    assert {node.attributes["accuracy_level"].as_int() for node in nodes(directory)} == {4}
    assert {node.attributes["accuracy_level"].as_int() for node in nodes(made("bert")[1])} == {0}
    (mixture,) = report.artifact.mixtures
    x = np.random.default_rng(0).standard_normal((9, 64)).astype(np.float32)
    fed = {
        "x": x,
        "ids": np.argsort(np.random.default_rng(1).random((9, 8)))[:, :2],
        "weights": np.full((9, 2), 0.5, np.float32),
    }
    fast, exact = (TARGET.open_mixture(directory, mixture, e).run(fed)["y"] for e in (False, True))
    assert 1e-3 < np.abs(fast - exact).max() / np.abs(exact).max() < 0.1
    model = ir.load(directory / "model.onnx")
    for node in model.graph:
        if node.op_type == "QMoE":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", 0)
    ir.save(model, tmp_path / "model.onnx")
    shutil.copy(directory / "model.onnx.data", tmp_path)
    quality: list[Quality] = []
    verify(Converted(open_source(str(source)), report.interface, TARGET, tmp_path, report.artifact), 0, quality)
    told = report.quality[-1]
    assert told.layers[0].error != quality[-1].layers[0].error and told.error != quality[-1].error
    assert told.error == pytest.approx(quality[-1].error, rel=0.3)


BITS = {"qwen3_moe": 4 + 32 / 32, "mixtral": 4 + (32 + 4) / 32, "gpt_oss": 8 + 32 * (2 * 48 + 64) / (3 * 48 * 64)}
"""Of a weight with its share of scales and zero points; gpt-oss has a scale for each row, here."""
PACKED_INPUTS = (2, 3, 5, 6, 11, 12)


@pytest.mark.parametrize("family", BITS)
def test_experts_take_the_bytes_of_their_arithmetic(made, family):
    _, directory, report = made(family)
    width, mixtures = 48 if family == "gpt_oss" else 64, nodes(directory)
    tensors = [node.inputs[i] for node in mixtures for i in PACKED_INPUTS if i < len(node.inputs)]
    stored_bytes = sum(tensor.const_value.length for tensor in tensors if tensor is not None)
    assert stored_bytes * 8 / (len(mixtures) * 8 * 3 * width * 64) == pytest.approx(BITS[family], rel=0.01)
    file, count = (directory / "model.onnx.data").stat().st_size, len(ir.load(directory / "model.onnx").graph.initializers)
    assert 0 <= file - report.artifact.weight_bytes < 64 * count


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "nvfp4"}, ("model.layers.0.mlp.experts", "nvfp4", "CUDA provider")),
        ({"quantize": "int4:32"}, ("model.layers.0.mlp.experts", "a block of 32 does not divide 48", "--group-size")),
    ],
    ids=["format", "block"],
)
def test_what_cannot_be_is_refused_before_a_weight_is_read(checkpoint, tmp_path, monkeypatch, options, words):
    read: list[str] = []
    monkeypatch.setattr(Checkpoint, "read", lambda self, name, *rows: read.append(name))
    with pytest.raises(Unsupported) as caught:
        convert(str(checkpoint("qwen3_moe", **SQUARE)), tmp_path / "out", ConvertOptions(**options))
    assert len(caught.value.gaps) == 1 and all(word in caught.value.gaps[0] for word in words)
    assert read == [] and list(tmp_path.iterdir()) == []
