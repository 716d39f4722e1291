"""Blocks that are nearly a mixture that is known: each is captured exactly, or left as it is with the reason, or refused.

Those that torch.export can trace stand in one module beside each other, so that one conversion takes them all: whether they
were recognised or not, their parity is proven, also at sizes at which the difference would show.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mocomp.errors import Unsupported
from mocomp.models.recognition import Found, Missed, recognise
from mocomp.models.user.loading import look
from mocomp.models.user.source import ModuleSource, from_module
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.routers import Router
from mocomp.routers.capacity import CapacitySequence
from mocomp.routers.softmax_topk import SoftmaxTopK
from tests.styles import near_misses

CAPTURED: dict[str, Router] = {
    "Plain": SoftmaxTopK(2, normalize=True),
    "LargeCapacity": CapacitySequence(4, 1, 0.0, "up", 64),
    "SharedWeights": SoftmaxTopK(2, normalize=True),
    "NormedGate": SoftmaxTopK(2, normalize=True),
    "HiddenScale": SoftmaxTopK(2, normalize=True, scale=2.4),
}
LEFT = {
    "FrozenNoise": "no known router does this; the nearest, ",
    "WeightBefore": "no weights times its experts give what they add",
    "OddCapacity": "no known router does this; the nearest, ",
    "NearlySilu": "no weights times its experts give what they add",
}
"""What is traced as it stands, with the reason why it is no mixture that is known."""
REFUSED = {
    "ActiveDropout": "one input",
    "NoisyChoice": "one input",
    "GrowingK": "the traced one is for batch*sequence <= 100",
    "HalfRouter": "torch.float16",
}
"""What is not converted, with the reason."""
DYNAMIC = {"x": ("batch", "sequence", None)}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return getattr(near_misses, name)().eval()


def drawn(batch: int, sequence: int, seed: int) -> dict[str, Tensor]:
    """x [B, S, H] of tokens that are somewhat alike, so that experts differ in how many they have."""
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(batch, sequence, 16, generator=generator) + torch.randn(16, generator=generator)}


class Together(nn.Module):
    """x [B, S, H] -> what each block gives, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({name: built(name) for name in (*CAPTURED, *LEFT)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: block(x) for name, block in self.blocks.items()}


@pytest.fixture(scope="module")
def source() -> ModuleSource:
    return from_module(Together(), drawn(2, 7, 0), DYNAMIC, "near misses")


@pytest.fixture(scope="module")
def found(source) -> dict[str, Found | Missed]:
    recognition = look(source).recognition
    return {one.name.removeprefix("blocks."): one for one in (*recognition.blocks, *recognition.refused)}


@pytest.fixture(scope="module")
def artifact(source, found, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("near_misses") / "made"
    report = convert(source, directory, ConvertOptions(target="onnxruntime"))
    assert report.parity is not None and report.parity.passed
    assert all(any(f"blocks.{name}" in note and reason in note for note in report.notes) for name, reason in LEFT.items())
    return directory


def test_every_near_miss_is_here():
    classes = {
        name for name, value in vars(near_misses).items() if isinstance(value, type) and issubclass(value, near_misses.Plain)
    }
    assert classes == {*CAPTURED, *LEFT, *REFUSED}


@pytest.mark.parametrize("name", CAPTURED)
def test_what_is_known_is_captured_as_what_it_is(found, name):
    assert found[name].router == CAPTURED[name]


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_known_is_left_with_the_reason(found, name):
    assert isinstance(found[name], Missed) and LEFT[name] in found[name].reason
    assert found[name].error > 1e-6


@pytest.mark.parametrize(("batch", "sequence"), [(1, 3), (3, 11), (2, 180)])
def test_the_artifact_is_the_original_where_the_difference_would_show(source, artifact, batch, sequence):
    """At the last size an expert with room for 64 tokens of a sequence is full, and k would be 2."""
    given = drawn(batch, sequence, 5)
    session = onnxruntime.InferenceSession(artifact / "model.onnx")
    names = [value.name for value in session.get_outputs()]
    made = dict(zip(names, session.run(None, {"x": given["x"].numpy()}), strict=True))
    with torch.no_grad():
        expected = source.module(**given)
    for name, y in expected.items():
        np.testing.assert_allclose(np.asarray(made[name]), y.numpy(), 1e-4, 1e-5 * float(y.abs().max()), err_msg=name)
    if sequence == 180:
        assert (expected["LargeCapacity"].abs().amax(-1) == 0).any()  # tokens were dropped


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_or_traced_is_refused(name, tmp_path):
    with pytest.raises(Unsupported) as caught:
        convert(
            from_module(built(name), drawn(2, 7, 0), DYNAMIC, name), tmp_path / "made", ConvertOptions(target="onnxruntime")
        )
    assert REFUSED[name] in " ".join([str(caught.value), *map(str, caught.value.gaps)])
    assert not (tmp_path / "made").exists()


def test_a_router_that_rounds_is_no_router_that_does_not():
    """In float64 the proof finds a router in float16 exact, and it chooses other experts."""
    recognition = look(from_module(built("HalfRouter"), drawn(2, 7, 0), DYNAMIC, "half")).recognition
    assert not recognition.blocks and "it rounds to fewer bits" in recognition.refused[0].reason


@pytest.mark.parametrize("name", [*LEFT, "GrowingK", "HalfRouter"])
def test_each_near_miss_is_a_difference(name):
    """Against the block that it looks like, with the same weights: else the tests above would show nothing."""
    block, plain = built(name), built("Plain")
    plain.load_state_dict(block.state_dict(), strict=False)
    x = drawn(2, 23, 3)["x"]
    with torch.no_grad():
        assert float((block(x) - plain(x)).abs().max()) > 1e-5


def test_a_capacity_beyond_every_draw_is_found_by_its_attribute():
    block = built("LargeCapacity")
    block.expert_capacity = 3000
    (found,) = recognise(block, [drawn(2, 7, 0)]).blocks
    assert found.router == CapacitySequence(4, 1, 0.0, "up", 3000)
