"""What holds of every router; adding a file to mocomp/routers adds its tests, for the examples that it gives itself."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from mocomp.errors import MocompError, Unsupported
from mocomp.ir.specs import spell
from mocomp.registry import discover
from mocomp.routers import ANY_OPS, Evidence, Example, Router, candidates
from mocomp.routers.expert_choice import ExpertChoice
from mocomp.routers.gap import Gap
from mocomp.routers.relu import Relu
from mocomp.routers.sigmoid_topk import SigmoidTopK
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.routers.two_level import TwoLevel
from tests.laws.router_laws import LAWS, TOKENS, Case, close, shares

KINDS: dict[str, type[Router]] = discover("mocomp.routers", "Router")


def examples() -> dict[str, Case]:
    """Every example of every kind."""
    found = [example for kind in KINDS.values() for example in kind.examples()]
    return {f"{spell(example.router)} {len(example.tensors)} tensors": Case(example) for example in found}


CASES = examples()
EVIDENCE = [
    Evidence(8, k, tensors, ANY_OPS, (k, 2, 4), frozenset({0.02, 0.5, 1.25, 2.0, 1e-9}))
    for k in (1, 3, 8)
    for tensors in ((), ((8,),))
]
MOST, MOST_ORDERED = 20, 600
"""Guesses of a kind. Those whose tokens are served in order are asked last, and capacity is counted in many ways."""


@pytest.mark.parametrize("name", CASES, ids=str)
def test_a_router_keeps_the_laws(name):
    for law in LAWS:
        law(CASES[name])


def test_every_kind_has_examples():
    assert {type(case.router) for case in CASES.values()} == set(KINDS.values())


@pytest.mark.parametrize("name", KINDS)
def test_guesses_are_few_and_routers(name):
    """They are of the kind and route what was found; that they are right is for who asked to prove."""
    for evidence in EVIDENCE:
        guesses = list(KINDS[name].guesses(evidence))
        assert len(guesses) <= (MOST_ORDERED if KINDS[name].ordered else MOST) and len(set(guesses)) == len(guesses)
        tensors = [torch.zeros(shape) for shape in evidence.tensors]
        for guess in guesses:
            assert type(guess) is KINDS[name]
            ids, weights = guess.choose(torch.randn(2, 3, 8) if guess.per_sequence else torch.randn(6, 8), *tensors)
            assert ids.shape == weights.shape == (6, guess.k) and ids.max() < 8


def test_what_nearly_all_models_do_is_guessed_first():
    """Of guesses that come to the same, the common one is taken: those of a fixed number, of each token by itself."""
    found = list(candidates(EVIDENCE[2]))
    ranks = [(guess.per_sequence, not guess.causal, not guess.fixed) for guess in found]
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]


@pytest.mark.parametrize("k", [1, 3])
def test_what_rarer_kinds_guess_is_not_what_common_ones_are(k):
    """It would be asked in vain. On logits near and far from each other, of several sequences."""
    spread = torch.tensor([0.1, 1.0, 4.0])[:, None, None]
    logits = spread * torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0))
    common, rarer = [], []
    for guess in candidates(Evidence(8, k, (), ANY_OPS, (k,), frozenset({0.3, 0.02, 1.5, 1e-9}))):
        found = shares(*guess.choose(logits if guess.per_sequence else logits.flatten(0, 1)), 8)
        if not guess.ordered:  # where an expert has room for all, these are the common ones, and are asked after them
            (common if guess.fixed and guess.causal else rarer).append((guess, found))
    assert len(common) > 5 and len(rarer) > 20
    for guess, found in rarer:
        assert not [other for other, theirs in common if close(found, theirs)], guess


def test_a_mask_over_groups_of_its_own_is_refused():
    with pytest.raises(Unsupported, match="masked"):
        SigmoidTopK(2, groups=4, groups_kept=2, masked=True)


def test_what_cannot_be_is_refused():
    with pytest.raises(Unsupported, match="where one is chosen"):
        Gap(1)
    with pytest.raises(Unsupported, match="3 experts of 2 groups"):
        TwoLevel(3, groups=4, groups_kept=2)


def test_any_number_of_experts_is_among_all_of_them():
    with pytest.raises(MocompError, match="k=4 experts, the logits are of 8"):
        ExpertChoice(4).choose(torch.zeros(TOKENS, 8))


@dataclass(frozen=True)
class Faulty(SoftmaxTopK):
    """A router with one thing wrong with it; a fault that no law sees would make the laws worthless."""

    name: ClassVar[str] = "softmax_topk"
    fault: str = ""

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ids, weights = super().choose(logits, *tensors)
        return getattr(self, f"_{self.fault}")(logits, ids, weights)

    def _twice(self, logits, ids, weights):
        return ids[:, :1].expand_as(ids), weights

    def _beyond(self, logits, ids, weights):
        return ids + 1, weights

    def _negative(self, logits, ids, weights):
        return ids, -weights

    def _fewer(self, logits, ids, weights):
        return ids, torch.where(weights > 0.1, weights, 0.0)

    def _larger(self, logits, ids, weights):
        return ids, 1.1 * weights

    def _named(self, logits, ids, weights):
        return ids, weights * (1 + 0.01 * ids)

    def _in_touch(self, logits, ids, weights):
        return ids, weights * (1 + 1e-3 * weights.mean())

    def _in_order(self, logits, ids, weights):
        return ids, weights * torch.linspace(1, 2, len(weights))[:, None]

    def _eager(self, logits, ids, weights):
        return super().choose(logits.nan_to_num(neginf=2.5), *())


FAULTS = {
    "twice": "gives_ids_of_experts",
    "beyond": "gives_ids_of_experts",
    "negative": "gives_weights_that_are_finite_and_not_negative",
    "fewer": "says_whether_every_token_has_k_experts",
    "larger": "gives_weights_of_the_declared_sum",
    "named": "knows_experts_by_no_name",
    "in_touch": "keeps_tokens_apart_as_it_says",
    "in_order": "knows_tokens_by_no_order",
    "eager": "never_takes_a_masked_expert",
}


@pytest.mark.parametrize(("fault", "law"), FAULTS.items())
def test_a_fault_breaks_its_law(fault, law):
    (check,) = (each for each in LAWS if each.__name__ == law)
    case = Case(Example(Faulty(3, normalize=fault == "larger", fault=fault)))
    with pytest.raises(AssertionError):
        check(case)
    check(Case(Example(SoftmaxTopK(3))))


def test_a_router_that_lies_of_what_it_is_breaks_a_law():
    """Says that it is causal where it is not, or that some have no expert where all have."""
    causal = type("Causal", (ExpertChoice,), {"causal": True})
    fixed = type("Fixed", (Relu,), {"fixed": True})
    for kind, law in ((causal, "keeps_tokens_apart_as_it_says"), (fixed, "says_whether_every_token_has_k_experts")):
        (check,) = (each for each in LAWS if each.__name__ == law)
        with pytest.raises(AssertionError):
            check(Case(Example(kind(8))))
