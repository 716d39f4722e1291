"""How many tokens an expert takes, and which."""

import math
from fractions import Fraction

import pytest
import torch

from mocomp.routers.expert_choice import ExpertChoice

FACTORS = ("1", "1.25", "1.1", "2", "0.7")


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("experts", range(1, 13))
def test_capacity_is_the_tokens_times_the_factor_by_the_experts_rounded_up(experts, factor):
    """In exact numbers: three thirds are one token."""
    router = ExpertChoice(experts, float(factor))
    for tokens in (1, 2, 3, 7, 30, 99, 1000):
        expected = min(tokens, math.ceil(Fraction(factor) * tokens / experts))
        assert (router.capacity(torch.ones(tokens, experts, dtype=torch.bool)) == expected).all(), tokens


def test_each_token_brings_its_share_to_the_experts_that_it_may_have():
    is_open = torch.rand(50, 6, generator=torch.Generator().manual_seed(0)) > 0.4
    counts = is_open.sum(-1).tolist()
    wanted = [sum(Fraction("1.1") / counts[t] for t in range(50) if is_open[t, e]) for e in range(6)]
    assert ExpertChoice(6, 1.1).capacity(is_open).tolist() == [math.ceil(load) for load in wanted]


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_an_expert_takes_its_best_tokens_and_no_more(score):
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    scores = {"softmax": logits.softmax(-1), "sigmoid": logits.sigmoid()}[score]
    shares = ExpertChoice(4, 1.1, score).shares(logits)
    for e in range(4):
        best = scores[:, e].argsort(descending=True)[:11]
        assert set(shares[:, e].nonzero().flatten().tolist()) == set(best.tolist())
        assert torch.equal(shares[best, e], scores[best, e])


def test_tokens_that_tie_with_the_last_are_taken():
    logits = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert (ExpertChoice(2, 1.0, "sigmoid").shares(logits)[:, 0] > 0).tolist() == [True, True, True, False]


def test_an_expert_that_no_token_may_have_takes_none():
    """Nor is a token taken that may have none, whose softmax is no number."""
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    logits[:, 2:] = float("-inf")
    logits[4] = float("-inf")
    shares = ExpertChoice(4, 8.0).shares(logits)
    assert (shares[:4, :2] > 0).all() and (shares[:, 2:] == 0).all() and (shares[4] == 0).all()


def test_an_unknown_score_is_an_error():
    with pytest.raises(KeyError, match="tanh"):
        ExpertChoice(4, score="tanh").shares(torch.zeros(3, 4))
