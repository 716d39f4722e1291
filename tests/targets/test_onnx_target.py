"""The target `onnx`: standard operators alone, the same numbers in ONNX Runtime and in onnx's own evaluator.

Dimension letters: T tokens, E experts, N rows, K columns.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch.nn import functional

from mocomp.commands.parity import ParityOptions
from mocomp.commands.parity import parity as prove_again
from mocomp.deployment import Deployment
from mocomp.errors import ParityFailed, Usage
from mocomp.experts.glu import GLU
from mocomp.ir.specs import spell
from mocomp.lowering.onnx_session import DATA, MODEL
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.passes import run
from mocomp.passes.quantize_weights import QuantizeWeights
from mocomp.pipeline import convert
from mocomp.quant.formats import Stored, parse
from mocomp.quant.weight import QuantisedWeight, promised
from mocomp.targets import Artifact
from mocomp.verify import stored
from mocomp.weights import recipes
from mocomp.weights.writer import Writer
from tests import checkpoints
from tests.programs import Formula, Traced, trace

K, HIDDEN, WIDTH, EXPERTS = 40, 33, 9, 3
"""Odd sizes, and blocks that divide none of them: rows and zero points end in the middle of a byte."""
RUN = ("int8:16", "int8:asym", "int4", "int4:16", "int4:16:asym", "int2:16", "fp8", "fp8:tensor", "fp8:128x128")
"""Formats that ONNX Runtime runs on the CPU; the standard has nvfp4 as well."""
TARGET = open_target("onnx")


def layer(m: Formula, x: torch.Tensor) -> torch.Tensor:
    """A linear layer, then a mixture of EXPERTS gated units."""
    h = functional.linear(x, m.a)
    shares, ids = torch.softmax(functional.linear(h, m.gate), -1).topk(2, -1)
    return torch.ops.mocomp.experts(h, ids, shares, m.w_in, None, m.w_out, None, spell(GLU()))


class Layers(torch.nn.ModuleList):
    """Each of its modules on x."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(module(x) for module in self)


SHAPES = {"a": (HIDDEN, K), "w_in": (EXPERTS, 2 * WIDTH, HIDDEN), "w_out": (EXPERTS, HIDDEN, WIDTH)}


@dataclass
class Lowered:
    """A small program with packed weights, and what became of it."""

    traced: Traced
    weights: dict[str, QuantisedWeight]
    directory: Path
    artifact: Artifact

    def read(self, name: str, start: int, stop: int) -> torch.Tensor:
        tensor = self.traced.tensors[name]
        return tensor[start:stop] if tensor.dim() else tensor

    def meant(self, name: str) -> torch.Tensor:
        """The floats that a packed weight stands for, by the format itself; those of one that is not packed."""
        if name not in self.weights:
            return self.traced.tensors[name].detach()
        weight = self.weights[name]
        parts = {part: recipe.evaluate(self.read) for part, recipe in weight.parts.items()}
        return weight.form.dequantise(Stored(**parts), weight.columns)

    def expected(self) -> list[np.ndarray]:
        """By the meaning of mocomp's ops."""
        return [y.numpy() for y in self.traced.program.run(self.traced.inputs, self.read)]

    def evaluated(self) -> list[np.ndarray]:
        """By onnx's reference evaluator."""
        model = onnx.load(self.directory / MODEL)
        return list(ReferenceEvaluator(model).run(None, {"x": self.traced.inputs["x"].numpy()}))

    def compare(self, **more: QuantisedWeight) -> None:
        stored.compare(self.weights | more, self.read, TARGET, self.directory, self.artifact)


@pytest.fixture(scope="module")
def lowered(tmp_path_factory):
    """lowered(formats, which weights of each are packed, factors of the inputs of the first)"""

    @functools.cache
    def made(texts: tuple[str, ...], names: tuple[str, ...] = tuple(SHAPES), factors: bool = False) -> Lowered:
        modules = [Formula(layer, gate=(EXPERTS, HIDDEN), **SHAPES) for _ in texts]
        traced = trace(Layers(modules), width=K)
        weights = {f"{i}.{name}": packed(traced, f"{i}.{name}", text) for i, text in enumerate(texts) for name in names}
        if factors:
            traced.tensors["factors"] = torch.linspace(0.5, 2.0, K)
            weights["0.a"] = QuantisedWeight(texts[0], K, weights["0.a"].parts, recipes.Tensor((K,), torch.float32, "factors"))
        for step in (QuantizeWeights(weights), *TARGET.passes()):
            run(step, traced.program)
        found = Lowered(traced, weights, tmp_path_factory.mktemp("lowered"), Artifact([], 0, 0))
        found.artifact = TARGET.lower(traced.program, found.directory, Writer(found.read))
        return found

    return made


def packed(traced: Traced, name: str, text: str) -> QuantisedWeight:
    """A weight rounded to a format, its parts among the tensors."""
    form, w = parse(text), traced.tensors[name].detach() / 4
    grid = form.fit(w)
    parts = form.pack(form.encode(w, grid), grid).tensors()
    traced.tensors |= {f"{name}.{part}": tensor for part, tensor in parts.items()}
    return promised(name, tuple(w.shape), form)


def assert_close(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def domains(directory: Path) -> set[str]:
    """Those of all nodes, in functions as well."""
    model = ir.load(directory / MODEL)
    return {node.domain for graph in (model.graph, *model.functions.values()) for node in graph.all_nodes()}


def test_every_format_runs_and_is_exact(lowered):
    made = lowered(RUN)
    found = TARGET.open(made.directory).run({"x": made.traced.inputs["x"].numpy()})
    assert_close([found[f"y{i}"] for i in range(len(RUN))], made.expected())
    made.compare()
    assert set(made.artifact.formats.values()) == set(RUN)
    assert TARGET.gaps(made.traced.program) == []


@pytest.mark.parametrize("texts", [RUN, ("int4:16", "nvfp4")], ids=["all that run", "nvfp4"])
def test_every_format_is_of_the_standard(lowered, texts):
    made = lowered(texts)
    onnx.checker.check_model(str(made.directory / MODEL), full_check=True)
    assert domains(made.directory) == {"", "mocomp"}
    assert_close(made.evaluated(), made.expected())


def test_what_no_runtime_here_computes_is_refused(lowered):
    made = lowered(("int4:16", "nvfp4"))
    gaps = TARGET.gaps(made.traced.program)
    assert [gap.where for gap in gaps] == ["1.a", "1.w_in", "1.w_out"] and all("CUDA" in gap.why for gap in gaps)
    made.compare()


def test_integers_stay_packed(lowered):
    made = lowered(RUN)
    initializers = ir.load(made.directory / MODEL).graph.initializers
    codes = initializers[f"{RUN.index('int4:16')}.w_in.codes"].const_value
    assert codes.nbytes == -(-EXPERTS * 2 * WIDTH * HIDDEN // 2)


@pytest.mark.parametrize("text", ["int4:16", "int4:16:asym", "int2:16", "fp8", "int8:asym"])
@pytest.mark.parametrize("part", ["codes", "scales"])
def test_a_damaged_byte_is_seen(lowered, text, part):
    made, name = lowered(RUN), f"{RUN.index(text)}.w_in"
    at = ir.load(made.directory / MODEL).graph.initializers[f"{name}.{part}"].const_value.offset
    data = (made.directory / DATA).read_bytes()
    (made.directory / DATA).write_bytes(data[:at] + bytes([data[at] ^ 0b11]) + data[at + 1 :])
    with pytest.raises(ParityFailed, match=f"expert 0, {name}"):
        made.compare()
    (made.directory / DATA).write_bytes(data)


def test_a_weight_that_is_not_in_the_artifact_is_missed(lowered):
    made = lowered(RUN)
    with pytest.raises(ParityFailed, match="nothing was found"):
        made.compare(other=made.weights["0.a"])


def test_weights_may_be_left_in_floats(lowered):
    made = lowered(("int4:16",), ("w_out",))
    assert made.artifact.banks == {"0": ["0.w_in", "0.w_out"]} and made.artifact.linears == {}
    ((_, *pair),) = TARGET.bank_weights(made.directory, made.artifact.banks)
    for name, found in zip(("0.w_in", "0.w_out"), pair, strict=True):
        assert np.array_equal(found, made.meant(name))


def test_factors_of_inputs_belong_to_the_weight(lowered):
    made = lowered(("int4:16",), ("a",), factors=True)
    assert np.array_equal(TARGET.linear_weights(made.directory)["0.a"], made.meant("0.a") * torch.linspace(0.5, 2.0, K))
    assert_close(made.evaluated(), made.expected())


ONE = {"num_hidden_layers": 1}
CONVERSIONS = {
    "llama": (ONE, {"quantize_dense": "int4"}),
    "qwen3_moe": (ONE, {"quantize": "int4:32:asym", "quantize_dense": "int8"}),
    "deepseek_v3": (ONE | {"first_k_dense_replace": 0}, {"quantize": "fp8"}),
}


@pytest.mark.parametrize("family", CONVERSIONS)
def test_whole_models_are_proven(tmp_path, family):
    changes, options = CONVERSIONS[family]
    source, out = checkpoints.make(family, tmp_path / "source", **changes), tmp_path / "out"
    report = convert(str(source), out, ConvertOptions(target="onnx", **options))
    assert report.parity.passed and report.parity.worst < 1e-5
    assert report.artifact.formats
    assert domains(out) <= {"", "mocomp"}
    if family == "qwen3_moe":
        (names,) = (mixture.bank for mixture in report.artifact.mixtures)
        assert [name.rpartition(".")[2] for name in names] == ["gate_up_proj", "down_proj"]
        assert prove_again(out, options=ParityOptions(seed=1)).passed


def test_options_of_other_targets_are_refused():
    with pytest.raises(Usage, match="accuracy-level"):
        open_target("onnx", Deployment(accuracy_level=4))
