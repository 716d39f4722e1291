"""What rounding may excuse, and what not: a run beside the original's, made up number by number."""

from dataclasses import replace

import numpy as np
import pytest

from mocomp.routers.sigmoid_topk import SigmoidTopK
from mocomp.verify.bisect import Bisection, Stage
from mocomp.verify.choices import Choice, choice_of, gap_of, scores_of
from mocomp.verify.inputs import Case
from mocomp.verify.judging import LayerError, judge
from mocomp.verify.program_trail import Followed
from mocomp.verify.tolerance import TABLE
from mocomp.verify.trail import OUTPUTS, Asked, Call, Trail

LIMIT = replace(TABLE["onnxruntime", "float32"], by_rounding=0.1)
BATCH, SEQUENCE, HIDDEN, MIXTURE = 4, 10, 3, "layers.0.experts"


def call(ids: np.ndarray | None = None, gap: np.ndarray | None = None, **values: np.ndarray) -> Call:
    """A call in which everything is 1 but for `values` by the names of layers, `first` and `second`, and `logits`."""
    whole = {name: np.ones((BATCH, SEQUENCE, HIDDEN), np.float32) for name in ("first", "second", "logits")} | values
    layers = {"layers.0": whole["first"], "layers.1": whole["second"]}
    chosen = {MIXTURE: Choice(np.tile([0, 1], (BATCH * SEQUENCE, 1)) if ids is None else ids, gap)}
    return Call({"logits": whole["logits"]}, layers, {MIXTURE: np.ones((BATCH * SEQUENCE, HIDDEN), np.float32)}, chosen)


def judged(other: Call, mask: np.ndarray | None = None, experts: float = 0.0) -> dict[str, LayerError]:
    """What is found in `other`, by layer."""
    mask = np.ones((BATCH, SEQUENCE), np.int64) if mask is None else mask
    asked = [Asked(Case("made up", BATCH, SEQUENCE), {"attention_mask": mask}, [call()])]
    trail = Trail(["layers.0", "layers.1"], {MIXTURE: 4}, asked, {})
    return {layer.layer: layer for layer in judge(Followed([[other]], {MIXTURE: experts}), trail, LIMIT)}


def off(sequence: int, by: float = 0.5) -> np.ndarray:
    """Ones, but for one token of a sequence."""
    made = np.ones((BATCH, SEQUENCE, HIDDEN), np.float32)
    made[sequence, 4] += by
    return made


def flipped(*tokens: int, gap: float = 0.0) -> dict[str, np.ndarray]:
    """The ids and gaps of a choice in which some tokens have another expert, by a gap."""
    ids, gaps = np.tile([0, 1], (BATCH * SEQUENCE, 1)), np.ones(BATCH * SEQUENCE)
    ids[list(tokens)], gaps[list(tokens)] = [0, 2], gap
    return {"ids": ids, "gap": gaps}


def faults(found: dict[str, LayerError]) -> list[str]:
    return [name for name, layer in found.items() if layer.fault]


def test_what_agrees_has_no_fault():
    found = judged(call())
    assert faults(found) == [] and list(found) == ["layers.0", "layers.1", OUTPUTS]
    assert found["layers.0"].tokens == BATCH * SEQUENCE


def test_an_error_is_found_where_it_is():
    assert faults(judged(call(second=off(0), logits=off(0)))) == ["layers.1", OUTPUTS]
    assert judged(call(second=off(0)))["layers.1"].error == pytest.approx(0.5)


def test_the_order_of_the_chosen_is_no_difference():
    assert faults(judged(call(ids=np.tile([1, 0], (BATCH * SEQUENCE, 1))))) == []


def test_a_flip_by_rounding_excuses_its_sequence_and_no_other():
    first = flipped(14)  # of the second sequence
    found = judged(call(first=off(1), second=off(1), logits=off(1), **first))
    assert faults(found) == [] and found["layers.0"].flips_within_margin == 1
    assert faults(judged(call(first=off(2), **first))) == ["layers.0"]


def test_a_flip_beyond_the_margin_is_a_fault_of_its_layer():
    found = judged(call(**flipped(14, gap=0.5)))
    assert faults(found) == ["layers.0"] and found["layers.0"].flips == 1
    assert "beyond the margin" in found["layers.0"].fault


def test_too_many_flips_by_rounding_are_a_fault_and_excuse_nothing():
    found = judged(call(first=off(1), **flipped(*range(10, 18))))
    assert faults(found) == ["layers.0"] and found["layers.0"].error == pytest.approx(0.5)
    assert "not so many" in found["layers.0"].fault


def test_where_every_sequence_was_decided_by_rounding_nothing_is_said_of_what_is_behind():
    choice = Choice(flipped(3, 13, 23, 33)["ids"], flipped(3, 13, 23, 33)["gap"])
    found = judged(call(choice.ids, choice.gap, second=off(0)))
    assert list(found) == ["layers.0"] and found["layers.0"].flips_within_margin == 4 and faults(found) == []
    verdict = Bisection([Stage("trace", list(found.values()))], None, LIMIT, "")
    assert verdict.culprit is None and not verdict.passed and "no verdict" in verdict.words


def test_ties_that_change_nothing_are_no_fault_however_many():
    """All experts give the same for a token that is all zeros, as that of padding often is."""
    found = judged(call(**flipped(*range(10, 18))))
    assert faults(found) == [] and found["layers.0"].flips_within_margin == 8


def test_flips_whose_margin_nobody_knows_are_judged_by_their_number():
    few, many = (flipped(*range(count))["ids"] for count in (4, 5))
    assert faults(judged(call(ids=few, first=off(0)))) == []
    assert faults(judged(call(ids=many, first=off(0)))) == ["layers.0"]


def test_another_number_of_experts_is_another_choice_for_all():
    found = judged(call(ids=np.tile([0], (BATCH * SEQUENCE, 1)), gap=np.ones(BATCH * SEQUENCE)))
    assert found["layers.0"].flips == BATCH * SEQUENCE


def test_padding_is_nobodys():
    mask = np.ones((BATCH, SEQUENCE), np.int64)
    mask[1, :5] = 0
    assert faults(judged(call(first=off(1), **flipped(14, gap=0.5)), mask)) == []


def test_experts_that_are_wrong_alone_are_a_fault():
    assert "experts alone" in judged(call(), experts=1e-3)["layers.0"].fault
    assert faults(judged(call(), experts=float("nan"))) == ["layers.0"]


def test_a_number_that_is_none_is_a_fault():
    broken = np.ones((BATCH, SEQUENCE, HIDDEN), np.float32)
    broken[0, 0, 0] = np.nan
    assert faults(judged(call(second=broken))) == ["layers.1"]
    assert faults(judged(call(second=broken[:, :, :2]))) == ["layers.1"]


def test_the_gap_is_between_the_last_chosen_and_the_next():
    scores = np.array([[4.0, 1.0, 3.0, 2.9], [1.0, 1.0, 1.0, 1.0], [0.0, -np.inf, -np.inf, -8.0]])
    np.testing.assert_allclose(gap_of(scores, 2), [0.1 / 4, 0.0, np.inf])
    assert sorted(choice_of(scores, 2).ids[0]) == [0, 2]
    assert gap_of(scores, 4).tolist() == [np.inf] * 3


def test_the_scores_of_a_router_are_those_it_chooses_by():
    import torch

    logits, bias = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 8)
    router = SigmoidTopK(2, groups=4, groups_kept=2)
    scores = scores_of(router, logits, [bias])
    assert torch.equal(scores, router.choice(logits, torch.sigmoid(logits), bias))
    assert torch.equal(scores.topk(2).indices.sort(-1).values, router.choose(logits, bias)[0].sort(-1).values)
