"""The parts of the verdict whose faults a whole conversion would hide."""

import numpy as np
import pytest

from mocomp.verify.measures import LOWEST, relative_error
from mocomp.verify.parity import LayerResult, Parity, conclude
from mocomp.verify.tolerance import TABLE

LIMIT = TABLE["onnxruntime", "float32"]


@pytest.mark.parametrize("actual", [[np.nan, 1.0], [np.inf, 1.0], [1.0]])
def test_a_missing_or_broken_number_is_infinitely_wrong(actual: list[float]) -> None:
    assert relative_error(np.array(actual), np.array([1.0, 1.0])) == float("inf")


def test_errors_are_relative_to_the_largest_expected() -> None:
    assert relative_error(np.array([1.0, 4.4]), np.array([1.0, 4.0])) == pytest.approx(0.1)
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0


def test_what_is_never_said_hides_no_error() -> None:
    """Chameleon gives its image tokens the lowest number there is, beside which everything else is small."""
    expected = np.array([[1.0, LOWEST, 4.0]], np.float32)
    assert relative_error(np.array([[1.0, LOWEST, 4.4]], np.float32), expected) == pytest.approx(0.1)
    assert relative_error(np.array([[1.0, 0.0, 4.0]], np.float32), expected) == float("inf")
    assert relative_error(np.array([[LOWEST, LOWEST, 4.0]], np.float32), expected) == float("inf")


@pytest.mark.parametrize(
    ("layer", "fault"),
    [
        (LayerResult("l", tokens=100, experts=8, reached=8), None),
        (LayerResult("l", tokens=100, flips_within_margin=1, experts=8, reached=8), None),
        (LayerResult("l", tokens=100, flips_within_margin=5, experts=8, reached=8), "rounding"),
        (LayerResult("l", tokens=100, flips=1, experts=8, reached=8), "beyond the margin"),
        (LayerResult("l", tokens=100, experts_error=2e-5, experts=8, reached=8), "experts off"),
        (LayerResult("l", tokens=100, experts_error=float("nan"), experts=8, reached=8), "experts off"),
    ],
)
def test_each_fault_of_a_layer_fails_it(layer: LayerResult, fault: str | None) -> None:
    parity = Parity([], [layer], LIMIT, seed=0)
    conclude(parity)
    assert parity.passed == (fault is None)
    assert fault is None or fault in parity.failures[0]


@pytest.mark.parametrize("unjudged", [40, 160])
def test_it_is_told_when_most_tokens_were_left_out(unjudged):
    parity = Parity([], [LayerResult("l", tokens=100, experts=8, reached=8, unjudged=unjudged)], LIMIT, seed=0)
    conclude(parity)
    assert parity.passed and any("only 100 of" in note for note in parity.notes) is (unjudged > 100)
