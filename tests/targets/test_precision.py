"""Graphs in 16 bits: typed as the standard wants, half as large, right where rounding decides, and like their float32 twin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser

from mocomp.deployment import Deployment
from mocomp.errors import BadInput
from mocomp.lowering import islands, precision
from mocomp.lowering.emulation import widen
from mocomp.lowering.onnx_session import load
from mocomp.lowering.precision import narrow
from mocomp.models.huggingface import Traced
from mocomp.models.source import Source, open_source
from mocomp.pipeline import explicit, fitted, insertions, rewrite
from mocomp.pipeline import load as load_source
from mocomp.targets import Artifact
from mocomp.targets.onnxruntime import OnnxRuntime
from mocomp.verify.converted import Converted
from mocomp.verify.parity import Parity
from mocomp.verify.verdict import verify
from mocomp.weights.checkpoint import Checkpoint, reader_of
from mocomp.weights.recipes import Recipe, Tensor, literal
from mocomp.weights.writer import Writer

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "checkpoint"
FAMILIES = ("mixtral", "deepseek_v3", "gpt_oss", "bert", "granitemoe", "digits")
"""A softmax router, one with groups and a bias, sinks, no experts, multipliers, and trained weights."""
TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}


class Rounding(OnnxRuntime):
    """What is for the GPU on the CPU provider as it is: that rounds to float16 where the GPU does, and sums in float32."""

    _device = "cpu"  # type: ignore[assignment]


@dataclass
class Lowered:
    """An artifact in 16 bits, and what it was made of."""

    source: Source
    traced: Traced
    directory: Path
    artifact: Artifact
    deployment: Deployment
    float_bytes: int

    def verdict(self, kind: Any) -> Parity:
        """Its parity as a target of that kind opens it."""
        made = kind(self.deployment)
        return verify(Converted(self.source, self.traced.interface, made, self.directory, self.artifact), 0, [])


@pytest.fixture(scope="module")
def lowered(checkpoint, tmp_path_factory) -> Callable[..., Lowered]:
    """lowered(family, dtype): each traced once for both types."""
    traced: dict[str, tuple[Source, Traced]] = {}

    def program(family: str) -> tuple[Source, Traced]:
        if family not in traced:
            source = open_source(str(DIGITS if family == "digits" else checkpoint(family)), False, "auto")
            with Checkpoint(source.directory) as opened:
                model = load_source(source, opened)
            rewrite(model.program, explicit(insertions(source, model)))
            rewrite(model.program, fitted(OnnxRuntime(), {}))
            traced[family] = source, model
        return traced[family]

    made: dict[tuple[str, str], Lowered] = {}

    def lower(family: str, dtype: str) -> Lowered:
        if (family, dtype) not in made:
            source, model = program(family)
            directory = tmp_path_factory.mktemp(f"{family}-{dtype}")
            deployment = Deployment(device="cuda", dtype=dtype, emulate=True)
            with Checkpoint(source.directory) as opened:
                artifact = OnnxRuntime(deployment).lower(model.program, directory, Writer(reader_of([opened])))
            size = sum(model.program.recipes[name].nbytes for _, name in model.program.weights())
            made[family, dtype] = Lowered(source, model, directory, artifact, deployment, size)
        return made[family, dtype]

    return lower


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_value_has_the_type_that_its_operator_gives(lowered, family, dtype):
    onnx.checker.check_model(lowered(family, dtype).directory / "model.onnx", full_check=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_are_half_as_large(lowered, family, dtype):
    found = lowered(family, dtype)
    assert found.artifact.weight_bytes < 0.501 * found.float_bytes


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_its_float32_twin_is_the_original_with_rounded_weights(lowered, family, dtype):
    parity = lowered(family, dtype).verdict(OnnxRuntime)
    assert parity.passed, parity.failures
    assert parity.tolerance.outputs == 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_computed_in_float16_it_is_within_the_tolerance_of_float16(lowered, family):
    found = lowered(family, "float16")
    found.deployment = Deployment(device="cuda", dtype="float16")
    parity = found.verdict(Rounding)
    found.deployment = Deployment(device="cuda", dtype="float16", emulate=True)
    assert parity.passed, parity.failures
    assert 1e-5 < parity.worst < parity.tolerance.outputs, "it was not computed in float16"


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss"])
def test_choices_angles_and_softmax_are_float32(lowered, family):
    nodes = list(load(lowered(family, "float16").directory).graph)
    read = {
        n.op_type: n.inputs[0].dtype
        for n in nodes
        if n.inputs and n.inputs[0] is not None and n.op_type in ("TopK", "Softmax", "Cos", "Sin", "Log")
    }
    assert {"Cos", "Sin"} < set(read)
    assert set(read.values()) == {ir.DataType.FLOAT}


def test_caches_are_narrow_and_the_rest_of_what_callers_see_is_not(lowered):
    graph = load(lowered("mixtral", "bfloat16").directory).graph
    kinds = {str(value.name): value.dtype for value in (*graph.inputs, *graph.outputs)}
    assert kinds["logits"] == ir.DataType.FLOAT
    assert {kinds[name] for name in kinds if name.startswith(("past", "present"))} == {ir.DataType.BFLOAT16}


# Single ideas, on graphs of a few nodes.

HEAD = '<ir_version: 10, opset_import: ["" : 23]>'
ROUTER = (
    HEAD
    + """g (float[T, 8] x) => (int64[T, 1] ids)
    { logits = MatMul (x, w)  p = Sigmoid (logits)  s = Add (p, bias)  values, ids = TopK (s, k) }"""
)
MASK = (
    HEAD
    + """g (bool[S, 8] seen, float[S, 8] x) => (float[S, 8] y)
    { mask = Where (seen, zero, lowest)  q = MatMul (x, w)  y = Add (q, mask) }"""
)
ADDED = (
    HEAD
    + """g (int64[S, 8] seen, float[S, 8] x) => (float[S, 8] y)
    { f = Cast <to = 1> (seen)  out = Sub (one, f)  mask = Mul (out, lowest)  q = MatMul (x, w)  y = Add (q, mask) }"""
)
ANGLES = (
    HEAD
    + """g (int64[S, 1] position, float[S, 8] x) => (float[S, 8] y)
    { f = Cast <to = 1> (position)  a = Mul (f, frequency)  c = Cos (a)  q = MatMul (x, w)  y = Mul (q, c) }"""
)
MULTIPLIER = HEAD + "g (float[T, 8] x) => (float[T, 8] y) { q = MatMul (x, w)  y = Mul (q, odd) }"
CONSTANTS: dict[str, Any] = {
    "zero": np.float32(0), "one": np.float32(1), "lowest": np.finfo(np.float32).min, "odd": np.float32(0.22),
    "k": np.array([1], np.int64), "frequency": np.linspace(0.1, 1, 8, dtype=np.float32)[None],
}  # fmt: skip


def run(text: str, inputs: dict[str, np.ndarray], dtype: str, weights: dict[str, np.ndarray] | None = None) -> np.ndarray:
    """The first output of a graph, narrowed to `dtype` unless that is float32, on the CPU."""
    held = {"w": np.eye(8, dtype=np.float32)} | (weights or {})
    model = built(text, held)
    recipes: dict[str, Recipe] = {
        name: Tensor(array.shape, torch.float32, name) for name, array in held.items() if name in model.graph.initializers
    }
    recipes = recipes if dtype == "float32" else narrow(model, recipes, dtype, ())
    for name, recipe in recipes.items():
        stored = recipe.evaluate(lambda tensor, start, stop: torch.from_numpy(held[tensor][start:stop]))
        value = model.graph.initializers[name]
        assert value.dtype is not None
        value.const_value = ir.tensor(stored.to(torch.float32).numpy().astype(value.dtype.numpy()), name=name)
    if dtype == "bfloat16":
        widen(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def built(text: str, held: dict[str, np.ndarray]) -> ir.Model:
    """A graph with its constants, and its weights without data."""
    proto = parser.parse_model(text)
    known = {name: np.array(array) for name, array in (CONSTANTS | held).items()}
    used = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in known.items() if name in used)
    model = ir.from_proto(proto)
    for node in model.graph:
        for value in node.outputs:
            value.dtype = value.dtype or (ir.DataType.INT64 if value.name == "ids" else ir.DataType.FLOAT)
    for name in held:
        if name in model.graph.initializers:
            model.graph.initializers[name].const_value = None
    if "seen" in text:  # an output in 16 bits, or ONNX Runtime leaves out a cast that is undone
        model.graph.outputs[0].name = "present.y"
    return model


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def close_scores() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Two experts whose scores differ by less than float16 tells apart, by a bias that float16 has not."""
    x = np.zeros((1, 8), np.float32)
    return {"x": x}, {"bias": np.array([0, 0.5, 0, 0.50001, 0, 0, 0, 0], np.float32)}


def test_a_choice_hangs_on_what_16_bits_cannot_tell_apart(monkeypatch):
    inputs, weights = close_scores()
    assert run(ROUTER, inputs, "float16", weights) == run(ROUTER, inputs, "float32", weights) == [[3]]
    monkeypatch.setattr(islands, "CHOICES", frozenset())
    assert run(ROUTER, inputs, "float16", weights) == [[1]]


SEEN = np.tril(np.ones((8, 8), bool), -1)
"""The first token sees nothing, as one in the padding."""


@pytest.mark.parametrize(("text", "kind"), [(MASK, np.bool_), (ADDED, np.int64)])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_mask_stays_finite_with_a_score_added(text, kind, dtype):
    inputs = {"seen": SEEN.astype(kind), "x": -100 * np.abs(drawn(8, 8))}
    found, expected = run(text, inputs, dtype), run(text, inputs, "float32")
    assert np.isfinite(found).all()
    assert (found[~SEEN] < -3e4).all()
    np.testing.assert_allclose(found[SEEN], expected[SEEN], rtol=8e-3)


def test_a_mask_beyond_the_range_is_noticed(monkeypatch):
    monkeypatch.setattr(precision, "within", lambda array, kind: array)
    with np.errstate(over="ignore"):
        assert not np.isfinite(run(MASK, {"seen": SEEN, "x": drawn(8, 8)}, "float16")).all()


def test_a_mask_that_is_computed_is_cut_before_it_is_cast(monkeypatch):
    monkeypatch.setattr(precision._Narrowing, "_outgrows", lambda self, value: False)
    assert not np.isfinite(run(ADDED, {"seen": SEEN.astype(np.int64), "x": drawn(8, 8)}, "float16")).all()


def test_angles_far_out_are_those_of_float32(monkeypatch):
    inputs = {"position": np.array([[2049], [4097], [40001]]), "x": drawn(3, 8)}
    expected = run(ANGLES, inputs, "float32")
    assert np.abs(run(ANGLES, inputs, "float16") - expected).max() < 4e-3
    monkeypatch.setattr(islands.Islands, "is_wide", lambda self, node: False)
    assert np.abs(run(ANGLES, inputs, "float16") - expected).max() > 0.5


def test_a_multiplier_is_the_number_that_it_is():
    inputs = {"x": np.ones((2, 8), np.float32)}
    assert run(MULTIPLIER, inputs, "bfloat16")[0, 0] == np.float32(0.22)


def test_buffers_that_an_island_reads_stay_float32(lowered):
    initializers = load(lowered("deepseek_v3", "float16").directory).graph.initializers
    biases = [value for name, value in initializers.items() if name.endswith("correction_bias")]
    assert biases and {value.dtype for value in biases} == {ir.DataType.FLOAT}


def test_a_weight_beyond_the_range_is_refused_by_its_name():
    large: dict[str, Recipe] = {"w": precision.narrowed(literal(torch.tensor([1.0, 7e4])), "model.w", "float16")}
    with pytest.raises(BadInput, match=r"model\.w: a number beyond the range of float16"):
        large["w"].evaluate(lambda name, start, stop: torch.empty(0))
    assert (
        precision.narrowed(literal(torch.tensor([7e4])), "w", "bfloat16").evaluate(lambda *_: torch.empty(0)).isfinite().all()
    )
