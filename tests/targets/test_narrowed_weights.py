"""What narrowing does with weights, with functions of an older opset, and with bodies that it does not see."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import parser
from safetensors.torch import load_file, save_file

from mocomp.errors import BadInput, Unsupported
from mocomp.ir.program import Program
from mocomp.lowering import precision
from mocomp.lowering.older_opsets import to_older
from mocomp.lowering.onnx_session import load
from mocomp.lowering.precision import narrow
from mocomp.lowering.standard_ops import to_standard
from mocomp.weights.recipes import Recipe, literal
from tests.targets.test_precision import HEAD, built, drawn

# Operators that came with opset 23, as functions of an older one.

NORM = HEAD + "g (float[T, 8] x) => (float[T, 8] y) { q = MatMul (x, w)  y = RMSNormalization <epsilon = 1e-6> (q, weight) }"
SHARES = (
    HEAD
    + """g (float[1, 2, 4, 8] x) => (float[1, 2, 4, 8] y)
    { q = MatMul (x, w)  y = Attention <scale = 1.0> (q, q, q) }"""
)


def older(text: str, x: np.ndarray, dtype: str) -> tuple[ir.Model, np.ndarray]:
    """A graph at opset 21 whose weights are eye and ones, in 16 bits, and its first output on the CPU."""
    held = {"w": np.eye(8, dtype=np.float32), "weight": np.ones(8, np.float32)}
    model = built(text, held)
    for node in model.graph:
        node.outputs[0].shape = ir.Shape(x.shape)
    to_older(model, 21)
    model.opset_imports[""] = 21
    recipes: dict[str, Recipe] = {name: literal(torch.from_numpy(held[name])) for name in model.graph.initializers}
    if dtype != "float32":
        recipes = narrow(model, recipes, dtype, ())
    for name, recipe in recipes.items():
        value = model.graph.initializers[name]
        assert value.dtype is not None
        array = recipe.evaluate(lambda *_: torch.empty(0)).to(torch.float32).numpy()
        value.const_value = ir.tensor(array.astype(value.dtype.numpy()), name=name)
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return model, np.asarray(session.run(None, {"x": x})[0])


@pytest.mark.parametrize(("text", "x"), [(NORM, 300 * drawn(3, 8)), (SHARES, 8 * drawn(1, 2, 4, 8))])
def test_functions_of_an_older_opset_are_float32_inside(monkeypatch, text, x):
    _, expected = older(text, x, "float32")
    model, found = older(text, x, "float16")
    (function,) = model.functions.values()
    np.testing.assert_allclose(found, expected, rtol=4e-3, atol=4e-3 * np.abs(expected).max())
    assert turned(function) == [ir.DataType.FLOAT] * len(function.inputs) + [ir.DataType.FLOAT16]
    assert "epsilon" not in text or held_by(function) == np.float32(1e-6)
    monkeypatch.setattr(precision, "names_older", lambda name: False)
    (function,) = older(text, x, "float16")[0].functions.values()
    assert turned(function) == []
    assert "epsilon" not in text or held_by(function) != np.float32(1e-6)


def turned(function: ir.Function) -> list[ir.DataType]:
    """What a function casts to."""
    return sorted(ir.DataType(node.attributes["to"].as_int()) for node in function if node.op_type == "Cast")


def held_by(function: ir.Function) -> np.float32:
    """The epsilon that a function adds."""
    (node,) = [node for node in function if node.outputs[0].name == "epsilon"]
    said = node.attributes
    return np.float32(said["value"].as_tensor().numpy() if "value" in said else said["value_float"].as_float())


HIDDEN = (
    HEAD
    + """g (bool seen, float[T, 8] x) => (float[T, 8] y) { y = If (seen) <
        then_branch = a () => (float[T, 8] p) { p = RMSNormalization (x, weight) },
        else_branch = b () => (float[T, 8] q) { q = Identity (x) }> }"""
)


def test_a_branch_of_the_models_own_is_refused():
    """In its body nothing would be narrowed, and nothing made older."""
    model = ir.from_proto(parser.parse_model(HIDDEN))
    with pytest.raises(Unsupported, match="If of the model's own, in float16"):
        narrow(model, {}, "float16", ())
    with pytest.raises(Unsupported, match="RMSNormalization in a branch or a loop, before opset 23"):
        to_older(model, 21)
    harmless = ir.from_proto(parser.parse_model(HIDDEN.replace("RMSNormalization (x, weight)", "Identity (x)")))
    to_older(harmless, 21)


def test_scales_that_float16_has_not_are_refused_and_weights_are_rounded():
    def stored(name: str, number: float, dtype: str = "float16") -> torch.Tensor:
        return precision.narrowed(literal(torch.tensor([1.0, number, 0.0])), name, dtype).evaluate(lambda *_: torch.empty(0))

    for number in (1e-8, 1e-7):  # nothing, and two thirds more than it was
        with pytest.raises(BadInput, match=r"w\.scales: a scale too small for float16"):
            stored("w.scales", number)
    assert stored("w.scales", 3e-5)[1] > 0, "subnormal, with most of its digits"
    assert stored("w.scales", 1e-20, "bfloat16")[1] > 0
    assert stored("w", 1e-8)[1] == 0


# What is a parameter is rounded, whoever reads it; buffers are not.


@pytest.fixture(scope="module")
def scaled_clip(checkpoint, tmp_path_factory) -> Path:
    """A CLIP whose logit_scale, read by Exp alone, is that of the published ones, which bfloat16 has not."""
    directory = tmp_path_factory.mktemp("clip") / "scaled"
    shutil.copytree(checkpoint("clip"), directory)
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"logit_scale": torch.tensor(4.6052)}, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def test_a_parameter_that_an_island_reads_is_rounded_as_that_of_the_reference(command, scaled_clip, tmp_path, monkeypatch):
    asked = ["--device", "cuda", "--dtype", "bfloat16", "--emulate"]
    done = command("convert", str(scaled_clip), "-o", str(tmp_path / "made"), *asked)
    assert done.code == 0, done.err
    assert load(tmp_path / "made").graph.initializers["logit_scale"].dtype == ir.DataType.BFLOAT16
    monkeypatch.setattr(Program, "parameters", lambda program: set())
    failed = command("convert", str(scaled_clip), "-o", str(tmp_path / "wide"), *asked)
    assert failed.code == 1 and "parity failed" in failed.err


class Causal(torch.nn.Module):
    """Attention of a model's own that no pass recognised."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)


def test_the_lowest_opset_has_what_the_exporter_wrote():
    exported = torch.export.export(Causal(), (torch.zeros(1, 2, 4, 8),))
    model = to_standard(Program(exported, {}, ["x"], ["y"]))
    assert [node.op_type for node in model.graph] == ["Attention"] and model.opset_imports[""] == 23
    with pytest.raises(Unsupported, match="is_causal before opset 23"):
        to_standard(Program(exported, {}, ["x"], ["y"]), 21)
