"""The original is given no weight that an artifact merely has: a fault in laying out floats is seen in every type, beside
whatever is quantised. Faults are planted in the layout that the targets share."""

from pathlib import Path

import pytest

from mocomp.commands.bisect import bisect_artifact
from mocomp.commands.parity import ParityOptions, parity
from mocomp.deployment import Deployment
from mocomp.errors import ParityFailed
from mocomp.lowering import operator_layout, tensorrt_moe
from mocomp.models.source import open_source
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import artifact_from, interface_from, read
from mocomp.targets.onnxruntime import OnnxRuntime
from mocomp.verify.converted import Converted
from mocomp.verify.verdict import verify
from mocomp.weights import recipes

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "checkpoint"
CUDA = {"device": "cuda", "emulate": True}
KINDS = {
    "float16": CUDA | {"dtype": "float16"},
    "bfloat16": CUDA | {"dtype": "bfloat16"},
    "beside quantised linear layers": {"quantize_dense": "int8:32"},
    "beside quantised linear layers in float16": CUDA | {"dtype": "float16", "quantize_dense": "int4:32"},
}


def swapped(recipe):
    """The first two experts in each other's place."""
    first, second = (recipes.slice_of(recipe, 0, i, i + 1) for i in (1, 0))
    return recipes.concat([first, second, recipes.slice_of(recipe, 0, 2, recipe.shape[0])], 0)


@pytest.mark.parametrize("kind", KINDS)
def test_swapped_experts_are_found(tmp_path, monkeypatch, kind):
    own = operator_layout.interleaved
    monkeypatch.setattr(operator_layout, "interleaved", lambda recipe: own(swapped(recipe)))
    with pytest.raises(ParityFailed, match="experts off by"):
        convert(str(DIGITS), tmp_path / "made", ConvertOptions(**KINDS[kind]))


def test_a_wrong_layout_of_tensorrts_layer_is_found_in_16_bits(tmp_path, monkeypatch):
    own = tensorrt_moe._halves
    monkeypatch.setattr(tensorrt_moe, "_halves", lambda *given: own(*given)[::-1])
    options = ConvertOptions(target="tensorrt", emulate=True, gpu="sm_100", dtype="float16")
    with pytest.raises(ParityFailed, match="experts off by"):
        convert(str(DIGITS), tmp_path / "made", options)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    """The digits for a GPU in bfloat16."""
    made = tmp_path_factory.mktemp("narrow") / "made"
    convert(str(DIGITS), made, ConvertOptions(**KINDS["bfloat16"]))
    return made


def test_the_users_own_inputs_and_bisecting_know_of_16_bits(narrow):
    assert parity(narrow, options=ParityOptions(text=("a digit",))).passed
    found = bisect_artifact(narrow, ParityOptions())
    assert found.passed and {layer.layer for layer in found.artifact.layers if "layers." in layer.layer}


class AsOnADevice(OnnxRuntime):
    """The graph for the GPU on the CPU provider, which rounds to float16 between operators as a GPU does."""

    @property
    def _device(self) -> str:
        return "cpu"

    def notes_of_run(self, directory, inputs):
        return []


def test_a_device_in_16_bits_is_held_to_its_twin_as_well(tmp_path, monkeypatch):
    """Weights a thousandth too large are within the tolerance of 16 bits, and no rounding."""
    made = tmp_path / "made"
    off = [False]
    own = operator_layout.interleaved
    monkeypatch.setattr(operator_layout, "interleaved", lambda recipe: scaled(own(recipe)) if off[0] else own(recipe))
    for fault in (False, True):
        off[0] = fault
        convert(str(DIGITS), made, ConvertOptions(**KINDS["float16"], parity="off", force=True))
        data = read(made)
        device = AsOnADevice(Deployment(device="cuda", dtype="float16"))
        converted = Converted(open_source(str(DIGITS)), interface_from(data), device, made, artifact_from(data))
        verdict = verify(converted, 0, [])
        assert verdict.passed is not fault
        assert all("twin" in failure for failure in verdict.failures), verdict.failures


def scaled(recipe):
    """A thousandth more."""
    return recipes.Apply(recipe.shape, recipe.dtype, lambda parts: parts[0] * 1.001, (recipe,))
