"""A mixture in a user's module is recognised, and its choices and its experts are proven beside the outputs."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import mocomp
from mocomp.errors import ParityFailed
from mocomp.models.user.loading import load_module, look
from mocomp.models.user.source import ModuleSource
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.verify.converted import Converted
from mocomp.verify.verdict import verify
from tests.user import modules
from tests.user.test_convert import edited


@pytest.fixture(scope="module")
def source() -> ModuleSource:
    """A model with a mixture of four experts."""
    ids = np.random.default_rng(0).integers(0, 11, (2, 7))
    return mocomp.from_module(modules.routed(), {"input_ids": ids}, {"input_ids": ("batch", "seq")})


@pytest.fixture(scope="module")
def made(tmp_path_factory, source):
    """(its artifact, its report)."""
    directory = tmp_path_factory.mktemp("routed") / "made"
    return directory, convert(source, directory, ConvertOptions(target="onnx"))


def test_it_is_recognised_and_judged(made):
    _, report = made
    (layer,) = report.parity.layers
    assert report.artifact.operators["Experts"] == 1 and "NonZero" not in report.artifact.operators
    assert (layer.layer, layer.experts, layer.reached, layer.flips) == ("mixture", 4, 4, 0) and layer.tokens > 50
    assert layer.experts_error < 1e-5 and report.parity.passed


def swapped(graph) -> None:
    """An edit: the first two experts with each other's output weights."""
    weight = next(one for one in graph.initializer if len(one.dims) == 3 and one.dims[1] == modules.HIDDEN)
    array = onnx.numpy_helper.to_array(weight).copy()
    array[[0, 1]] = array[[1, 0]]
    weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))


def router_moved(graph) -> None:
    """An edit: the router's rows in another order."""
    weight = next(one for one in graph.initializer if "gate" in one.name)
    array = onnx.numpy_helper.to_array(weight)
    weight.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(array[::-1]), weight.name))


@pytest.mark.parametrize(
    ("edit", "message"), [(swapped, "experts off by"), (router_moved, "tokens chose other experts, beyond the margin")]
)
def test_faults_of_a_mixture_are_named(made, source, tmp_path: Path, edit, message):
    directory, report = made
    bad = edited(directory, tmp_path / "bad", edit)
    target = open_target("onnx")
    verdict = verify(Converted(source, report.interface, target, bad, report.artifact), 0, [])
    assert any(message in failure for failure in verdict.failures)


def test_its_experts_in_few_bits(source, tmp_path):
    """The reference computes with what the artifact holds, and is what it was afterwards."""
    report = convert(source, tmp_path / "made", ConvertOptions(target="onnx", quantize="int8"))
    assert set(report.artifact.formats.values()) == {"int8"} and report.parity.passed
    assert report.parity.layers[0].experts_error < 1e-5
    unquantised = load_module(source)
    assert unquantised.program.recipes.keys() and not look(source).recognition.refused


def test_experts_of_a_reference_that_was_not_told_are_another_thing(source, tmp_path, monkeypatch):
    """The same artifact against the weights that it was not made of fails."""
    monkeypatch.setattr("mocomp.verify.module_parity.stored.put", lambda *rest: False)
    with pytest.raises(ParityFailed, match="experts off by"):
        convert(source, tmp_path / "made", ConvertOptions(target="onnx", quantize="int4"))


class Twice(modules.Mixture):
    """The same mixture two times, in contexts that change nothing at inference."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast("cpu", enabled=False):
            first = x + self.inner(x)
        with torch.no_grad():
            doubled = first * 2
        return first + self.inner(first), doubled


def test_a_block_that_is_called_twice(tmp_path):
    torch.manual_seed(0)
    module = Twice()
    module.inner = modules.Mixture()
    del module.gate, module.experts
    x = np.random.default_rng(0).normal(size=(2, 5, modules.HIDDEN)).astype(np.float32)
    source = mocomp.from_module(module, {"x": x}, {"x": ("batch", "seq", None)}, outputs=("y", "doubled"))
    report = convert(source, tmp_path / "made", ConvertOptions(target="onnx"))
    assert [layer.layer for layer in report.parity.layers] == ["inner", "inner@2"]
    assert all(layer.tokens > 50 and not layer.flips for layer in report.parity.layers) and report.parity.passed
