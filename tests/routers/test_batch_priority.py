"""Batch-prioritised routing against a loop over the tokens in the order of their largest weight."""

import numpy as np
import pytest
import torch

from mocomp.routers import ANY_OPS, Evidence
from mocomp.routers.capacity import BatchPriority, Capacity
from tests.laws.router_laws import close
from tests.routers.test_capacity import EXPERTS, logits, room, served

ROUTERS = [
    BatchPriority(EXPERTS),
    BatchPriority(EXPERTS, 2, 1.2, "nearest", 0, "choice", ""),
    BatchPriority(EXPERTS, 2, 1.0, "down", 1, "token", "after"),
    BatchPriority(EXPERTS, 1, 0.0, "up", 3),
]


def by_priority(z: np.ndarray) -> list[int]:
    """Tokens, that with the largest p first."""
    p = np.exp(z - z.max(-1, keepdims=True))
    return sorted(range(len(z)), key=lambda t: -(p[t] / p[t].sum()).max())


@pytest.mark.parametrize("router", ROUTERS, ids=str)
@pytest.mark.parametrize("tokens", [1, 7, 40])
def test_a_router_is_the_loop(router, tokens):
    z = logits(tokens, tokens)
    exact = z.double().numpy()
    assert close(router.shares(z), torch.from_numpy(served(router, exact, by_priority(exact))).float())


def test_the_token_with_the_largest_weight_never_goes_without():
    """Where it comes last, capacity in the order of tokens drops it."""
    z = torch.full((20, EXPERTS), -4.0)
    z[:, 2] = torch.linspace(1, 2, 20)
    kept = BatchPriority(EXPERTS).shares(z)[:, 2] > 0
    assert kept.nonzero().flatten().tolist() == [16, 17, 18, 19]
    assert (Capacity(EXPERTS).shares(z)[:, 2] > 0).nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_what_was_measured_is_guessed():
    router = ROUTERS[1]
    loads = tuple((tokens, min(tokens, room(router, tokens))) for tokens in (5, 18, 33, 200))
    seen = Evidence(EXPERTS, 2, (), ANY_OPS, (2,), frozenset({0.6}), loads, loads)
    assert router in list(BatchPriority.guesses(seen))
