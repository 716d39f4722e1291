"""Top-k with capacity against a loop over tokens that calls no router, and what is guessed from loads."""

import math
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from mocomp.routers import ANY_OPS, Evidence
from mocomp.routers.capacity import Capacity, CapacitySequence
from tests.laws.router_laws import close

EXPERTS = 6
ROUTERS = [
    Capacity(EXPERTS),
    Capacity(EXPERTS, 2, 2.0, "up", 0, "choice", "before"),
    Capacity(EXPERTS, 2, 1.6, "up", 2, "choice", "after"),
    Capacity(EXPERTS, 2, 1.1, "down", 0, "token", "after"),
    Capacity(EXPERTS, 3, 1.5, "nearest", 0, "token", ""),
    Capacity(EXPERTS, 2, 1.0, "each", 0, "choice", "before"),
    Capacity(EXPERTS, 2, 1.25, "down", 4, "choice", "before", 0.3),
    Capacity(EXPERTS, 1, 0.0, "up", 3),
]
SPELT = [f"{r.each} {r.factor} {r.rounding} {r.minimum} {r.order} {r.normalize} {r.threshold}" for r in ROUTERS]


def logits(tokens: int, seed: int = 0) -> torch.Tensor:
    """Logits [T, E] under which some experts are wanted by many."""
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(tokens, EXPERTS, generator=generator) + torch.randn(EXPERTS, generator=generator)


def room(router: Capacity, tokens: int) -> int:
    """For how many tokens an expert has room, in exact numbers."""
    factor = Fraction(str(router.factor))
    if router.rounding == "each":
        return max(router.minimum, router.each * math.floor(factor * math.ceil(Fraction(tokens, EXPERTS))))
    wanted = factor * tokens / EXPERTS
    return max(router.minimum, {"up": math.ceil, "down": math.floor, "nearest": round}[router.rounding](wanted))


def served(router: Capacity, z: np.ndarray, tokens: list[int]) -> np.ndarray:
    """Weights [T, E], one wish after the other, of `tokens` in the order in which they are served."""
    p = np.exp(z - z.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    wishes = {}
    for t in tokens:
        best = sorted(range(EXPERTS), key=lambda e: -p[t, e])[: router.each]
        total = sum(p[t, e] for e in best)
        wishes[t] = [e for i, e in enumerate(best) if i == 0 or p[t, e] / total > router.threshold], total
    turns = [(t, i) for i in range(router.each) for t in tokens]
    if router.order == "token":
        turns = [(t, i) for t in tokens for i in range(router.each)]
    load, shares = Counter(), np.zeros_like(z)
    for t, i in turns:
        if i < len(wishes[t][0]):
            e = wishes[t][0][i]
            if load[e] < room(router, len(z)):
                shares[t, e] = p[t, e] / (wishes[t][1] if router.normalize == "before" else 1)
            load[e] += 1
    if router.normalize == "after":
        shares /= np.maximum(shares.sum(-1, keepdims=True), 1e-30)
    return shares


@pytest.mark.parametrize("router", ROUTERS, ids=SPELT)
@pytest.mark.parametrize("tokens", [1, 5, 31, 64])
def test_a_router_is_the_loop(router, tokens):
    z = logits(tokens, tokens)
    expected = torch.from_numpy(served(router, z.double().numpy(), list(range(tokens)))).float()
    assert close(router.shares(z), expected)
    if tokens > 5:
        assert not close(router.uncapped().shares(z), expected)  # some were dropped


@pytest.mark.parametrize("router", ROUTERS, ids=SPELT)
def test_by_sequence_each_sequence_is_alone(router):
    given = {name: value for name, value in vars(router).items()}
    z = torch.stack([logits(13, seed) for seed in range(3)])
    apart = torch.cat([router.shares(one) for one in z])
    ids, weights = CapacitySequence(**given).choose(z)
    assert torch.equal(ids, torch.arange(EXPERTS).expand(39, EXPERTS)) and torch.equal(weights, apart)


@pytest.mark.parametrize("change", [{"order": "token"}, {"normalize": "after"}, {"rounding": "down"}, {"minimum": 12}])
def test_each_choice_of_the_papers_matters(change):
    """Else the loop above would prove nothing of it."""
    router = Capacity(EXPERTS, 2, 2.1, "up", 0, "choice", "before")
    assert not close(router.shares(logits(31, 31)), replace(router, **change).shares(logits(31, 31)))


@pytest.mark.parametrize("factor", [1.0, 1.1, 1.25, 0.7, 2.1, 1.15])
@pytest.mark.parametrize("rounding", ["up", "down", "nearest", "each"])
def test_room_is_counted_in_exact_numbers(factor, rounding):
    """1.1 * 60 / 6 is 11, though a float is a little more."""
    router = Capacity(EXPERTS, 2, factor, rounding)
    counts = torch.arange(1, 2000)
    assert router.room(counts.double()).tolist() == [room(router, tokens) for tokens in counts.tolist()]


def evidence(router: Capacity, sizes: tuple[int, ...], numbers: frozenset[float]) -> Evidence:
    """What would be measured of a router at these numbers of tokens, where an expert is wanted by all."""
    loads = tuple((tokens, min(tokens, room(router, tokens))) for tokens in sizes)
    return Evidence(EXPERTS, router.each, (), ANY_OPS, (router.each, 2, 3, 4), numbers, loads, loads)


@pytest.mark.parametrize("router", ROUTERS, ids=SPELT)
@pytest.mark.parametrize("kind", [Capacity, CapacitySequence])
def test_what_was_measured_is_guessed(kind, router):
    """With the numbers that stand on such a module, and few others beside."""
    numbers = frozenset({router.factor, router.factor / router.each, router.threshold, 1e-9, 0.1}) - {0.0}
    guesses = list(kind.guesses(evidence(router, (3, 17, 31, 200), numbers)))
    assert kind(**vars(router)) in guesses
    assert len(guesses) <= 400 and len(set(guesses)) == len(guesses)


def test_what_the_loads_contradict_is_not_guessed():
    """An expert with more tokens than there is room for, or room that nobody ever filled."""
    router = Capacity(EXPERTS, 1, 1.0)
    assert router.explains(((12, 2), (30, 4)))
    assert not router.explains(((12, 3),)) and not router.explains(((12, 1), (30, 4)))


def test_of_a_graph_that_was_traced_nothing_is_guessed():
    assert not list(Capacity.guesses(Evidence(EXPERTS, 2, (), frozenset({"softmax", "cumsum"}), (2,), frozenset({1.0}))))
