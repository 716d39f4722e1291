"""What quantisation costs, in figures that are worked out here once more by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mocomp.report.sweep import Sweep, Way
from mocomp.verify.measures import LOWEST
from mocomp.verify.quality import LayerQuality, OutputJudge, Quality, common


def concluded(*calls: tuple) -> Quality:
    judge = OutputJudge()
    for call in calls:
        judge.add(*call)
    return judge.conclude(Quality("int4", "rtn", []))


def logits(*rows: list[float]) -> torch.Tensor:
    """Of the logarithms of probabilities [1, S, V]."""
    return torch.tensor([rows]).log()


EXACT = logits([0.5, 0.25, 0.25], [0.2, 0.2, 0.6])
OTHER = logits([0.25, 0.5, 0.25], [0.2, 0.2, 0.6])
KL = (0.5 * math.log(2) + 0.25 * math.log(0.5)) / 2


def test_figures_of_next_tokens():
    found = concluded((EXACT, OTHER + 3.0, torch.tensor([[0, 1]])))  # a constant is no difference to softmax
    assert found.kl == pytest.approx(KL) and found.top1 == 0.5 and found.tokens == 2
    assert found.perplexity_float == pytest.approx(1 / 0.25) and found.perplexity == pytest.approx(1 / 0.5)
    assert found.error == pytest.approx(float((OTHER + 3.0 - EXACT).norm() / EXACT.norm()))


def test_figures_of_several_calls_are_those_of_all_tokens():
    """Not the mean of means: the calls have 2 and 4 tokens."""
    same = EXACT.expand(2, -1, -1)
    found = concluded((EXACT, OTHER, torch.tensor([[0, 1]])), (same, same, torch.tensor([[0, 1], [0, 1]])))
    assert found.kl == pytest.approx(KL / 3) and found.top1 == pytest.approx(5 / 6) and found.tokens == 6
    assert found.perplexity == pytest.approx((2 * 4 * 4) ** (1 / 3))
    assert found.error == pytest.approx(float((OTHER - EXACT).norm() / (3 * EXACT.square().sum()).sqrt()))


def test_what_a_model_never_says_hides_nothing():
    never = torch.full((1, 2, 1), LOWEST.item())
    plain, masked = concluded((EXACT, OTHER)), concluded((torch.cat([EXACT, never], -1), torch.cat([OTHER, never], -1)))
    assert (masked.kl, masked.top1, masked.error) == pytest.approx((plain.kl, plain.top1, plain.error))


def test_other_outputs_have_an_error_and_nothing_else():
    found = concluded((torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]), None, False))
    assert found.error == pytest.approx(0.1) and found.kl is found.top1 is found.perplexity is None


def test_equal_outputs_cost_nothing():
    found = concluded((EXACT, EXACT.clone(), torch.tensor([[0, 1]])))
    assert (found.error, found.kl, found.top1) == (0.0, 0.0, 1.0) and found.perplexity == found.perplexity_float


def test_common_experts_are_counted_whatever_their_order():
    ids, others = torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([[1, 0], [3, 7], [0, 1]])
    assert common(ids, others).tolist() == [1.0, 0.5, 0.0]


def test_figures_of_layers_together():
    quality = Quality("int4", "rtn", [LayerQuality("a", 0.3, 1.0), LayerQuality("b", 0.4, 0.5)])
    assert quality.agreement == 0.75 and quality.experts_error == pytest.approx(math.sqrt((0.09 + 0.16) / 2))
    assert Quality("int4", "rtn", []).agreement == 1.0 and Quality("int4", "rtn", []).experts_error == 0.0


def way(name: str, nbytes: int, kl: float | None, error: float = 0.5) -> Way:
    return Way(name, "rtn", nbytes, quality=Quality(name, "rtn", [], error=error, kl=kl))


FRONTS = {
    "all are worth having": ([("a", 1, 0.3), ("b", 2, 0.2), ("c", 3, 0.1)], "abc"),
    "one is larger and no better": ([("a", 1, 0.3), ("b", 2, 0.3), ("c", 3, 0.1)], "ac"),
    "one is as large and worse": ([("a", 1, 0.3), ("b", 1, 0.4)], "a"),
    "two are alike": ([("a", 1, 0.3), ("b", 1, 0.3), ("c", 2, 0.4)], "ab"),
    "the smallest is the best": ([("a", 1, 0.1), ("b", 2, 0.2), ("c", 3, 0.3)], "a"),
}


@pytest.mark.parametrize("case", FRONTS)
def test_the_front_is_what_nothing_beats(case):
    ways, front = FRONTS[case]
    sweep = Sweep("source", [way(*each) for each in ways], [], "data")
    assert "".join(each.format for each in sweep.ways if each.front) == front


def test_floats_lose_nothing_and_models_without_a_distribution_go_by_error():
    ways = [Way("float", nbytes=9), way("a", 2, None, error=0.1), way("b", 3, None, error=0.2), way("c", 4, None, error=0.05)]
    assert [each.loss for each in ways] == [0.0, 0.1, 0.2, 0.05]
    assert [each.format for each in Sweep("source", ways, [], "data").ways if each.front] == ["float", "a", "c"]
