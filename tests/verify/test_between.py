"""Two models side by side: what differs is told with its numbers, and what rounding decided is no difference."""

from dataclasses import replace

import numpy as np
import pytest

from mocomp.errors import BadInput
from mocomp.models.interface import Interface
from mocomp.verify.between import Side, between
from mocomp.verify.choices import Choice
from mocomp.verify.inputs import Case
from mocomp.verify.tolerance import TABLE
from mocomp.verify.trail import Call

TIGHT, LOOSE = TABLE["onnxruntime", "float32"], TABLE["onnxruntime", "int8 activations"]
INTERFACE = Interface("generator", ["input_ids", "attention_mask"], ["logits"], {}, vocabulary=4)
BATCH, SEQUENCE, MIXTURE = 2, 60, "layers.0.experts"
LOGITS = np.random.default_rng(0).standard_normal((BATCH, SEQUENCE, 4)).astype(np.float32)
IDS = np.tile([0, 1], (BATCH * SEQUENCE, 1))
GIVEN = [(Case("made up", BATCH, SEQUENCE), {"attention_mask": np.ones((BATCH, SEQUENCE), np.int64)})]


def side(name: str, logits: np.ndarray = LOGITS, choice: Choice | None = None, **changes) -> Side:
    calls = [[Call({"logits": logits}, chosen={} if choice is None else {MIXTURE: choice})]]
    return replace(Side(name, INTERFACE, TIGHT, lambda given: calls), **changes)


def compare(a: Side, b: Side):
    return between(a, b, GIVEN, "made up")


def test_the_same_is_the_same():
    found = compare(side("a", choice=Choice(IDS)), side("b", choice=Choice(IDS)))
    assert found.passed and found.worst == 0.0 and found.agreement == 1.0 and found.cases[0].top1 == 1.0


def test_an_error_beyond_the_tolerance_fails_by_the_looser_of_the_two():
    off = LOGITS + 0.01 * np.abs(LOGITS).max()
    assert compare(side("a"), side("b", off)).worst == pytest.approx(0.01, rel=1e-3)
    assert not compare(side("a"), side("b", off)).passed
    assert compare(side("a"), side("b", off, tolerance=LOOSE)).passed
    assert compare(side("a", tolerance=LOOSE), side("b", off)).passed


def flipped(gap: float) -> Choice:
    """One token of the first sequence has another expert, by a gap."""
    ids, gaps = IDS.copy(), np.ones(len(IDS))
    ids[7], gaps[7] = [0, 3], gap
    return Choice(ids, gaps)


def test_what_rounding_decided_is_no_difference():
    off = LOGITS.copy()
    off[0, 7:] += 1.0
    found = compare(side("a", choice=Choice(IDS)), side("b", off, flipped(0.0)))
    assert found.passed and found.cases[0].clean == 1 and found.layers[0].flips_within_margin == 1


def test_what_it_did_not_decide_is_one_and_excuses_nothing():
    off = LOGITS.copy()
    off[0, 7:] += 1.0
    found = compare(side("a", choice=Choice(IDS)), side("b", off, flipped(0.5)))
    assert any("1 of 120 tokens chose other experts, beyond the margin" in failure for failure in found.failures)
    assert any("logits off by" in failure for failure in found.failures) and found.cases[0].clean == BATCH
    assert found.agreement == pytest.approx(119 / 120)


def test_it_says_what_is_in_few_bits_and_what_cannot_be_compared():
    found = compare(side("a", choice=Choice(IDS)), side("b", formats={"int4:32": 6}))
    assert found.notes[0] == "a holds floats; b holds 6 weights in int4:32"
    assert "only outputs were compared" in found.notes[1] and found.agreement is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "encoder"}, "cannot be asked the same"),
        ({"inputs": ["input_ids"]}, "cannot be asked the same"),
        ({"vocabulary": 5}, "4 tokens and b 5"),
        ({"outputs": ["pooled"]}, "a gives logits, b pooled"),
    ],
)
def test_models_that_cannot_be_compared_are_refused(changes, words):
    with pytest.raises(BadInput, match=words):
        compare(side("a"), side("b", interface=replace(INTERFACE, **changes)))
