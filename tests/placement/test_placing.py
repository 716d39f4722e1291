"""Placements against brute force, on planted chains, and what holds of every one of them."""

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mocomp.placement import programme
from mocomp.placement.placing import SLACK, place, room_of, sweep
from mocomp.placement.programme import Room
from mocomp.placement.spectral import together
from mocomp.placement.traffic import Traffic, blocks, crossing, imbalance, loads, round_robin


def traffic_of(ids: list[np.ndarray], experts: int) -> Traffic:
    """What tokens that chose `ids` [T, K], layer by layer, did: counted one by one."""
    load = [np.bincount(own.ravel(), minlength=experts) for own in ids]
    steps = [np.zeros((experts, experts), np.int64) for _ in ids[1:]]
    for counted, (before, after) in zip(steps, pairwise(ids), strict=True):
        for token in range(len(before)):
            for a, b in product(before[token], after[token]):
                counted[a, b] += 1
    return Traffic([f"layer {i}" for i in range(len(ids))], load, steps)


def drawn(seed: int, layers: int = 3, experts: int = 4, tokens: int = 60) -> Traffic:
    random = np.random.default_rng(seed)
    return traffic_of([np.argsort(random.gumbel(0, 1, (tokens, experts)), 1)[:, :2] for _ in range(layers)], experts)


def planted(layers: int, experts: int, ranks: int, seed: int = 0) -> tuple[Traffic, list[np.ndarray]]:
    """Tokens that stay in one of some sets of experts in all layers, and those sets, which are spread at random."""
    random = np.random.default_rng(seed)
    sets = [random.permutation(np.arange(experts) * ranks // experts) for _ in range(layers)]
    owner = random.integers(0, ranks, 400)
    ids = [np.stack([random.choice(np.flatnonzero(own == rank), 2, replace=False) for rank in owner]) for own in sets]
    return traffic_of(ids, experts), sets


def allowed(traffic: Traffic, rooms: list[Room], ranks: int) -> list[list[np.ndarray]]:
    """All placements of each layer that its room allows."""
    found = []
    for load, room in zip(traffic.load, rooms, strict=True):
        every = (np.array(ranks_of) for ranks_of in product(range(ranks), repeat=len(load)))
        kept = []
        for of in every:
            held = np.bincount(of, minlength=ranks)
            if held.min() >= room.least and held.max() <= room.most and loads(load, of, ranks).max() <= room.load:
                kept.append(of)
        found.append(kept)
    return found


@pytest.mark.parametrize(("experts", "ranks"), [(4, 2), (5, 2), (3, 3), (4, 3)])
def test_no_placement_is_better(experts, ranks):
    for seed in range(3):
        traffic = drawn(seed, experts=experts)
        rooms = [room_of(l, of, ranks, SLACK) for l, of in zip(traffic.load, round_robin(traffic.experts, ranks), strict=True)]
        best = min(crossing(traffic, list(places)) for places in product(*allowed(traffic, rooms, ranks)))
        placed = place(traffic, ranks)
        assert placed.optimal and crossing(traffic, placed.places) == best


def test_one_layer_is_placed_as_its_gain_wants():
    """Where the bound on loads bites, too: the busiest expert is wanted by rank 0 with another busy one."""
    random = np.random.default_rng(0)
    for _ in range(20):
        gain, load = random.integers(0, 9, (5, 2)), random.integers(1, 9, 5)
        room = Room(2, 3, int(load.sum() * 0.6) + 1)
        best = -1
        for of in (np.array(of) for of in product(range(2), repeat=5)):
            if 2 <= of.sum() <= 3 and loads(load, of, 2).max() <= room.load:
                best = max(best, int(gain[np.arange(5), of].sum()))
        found = programme.layer(gain, load, room)
        assert (found is None) == (best < 0)
        if found is not None:
            assert loads(load, found, 2).max() <= room.load
            assert gain[np.arange(5), found].sum() >= best * (1 - programme.ROUGH)


@pytest.mark.parametrize(("layers", "experts", "ranks"), [(3, 8, 2), (3, 8, 4), (6, 32, 4)])
def test_a_planted_chain_is_found(layers, experts, ranks):
    traffic, sets = planted(layers, experts, ranks)
    assert crossing(traffic, sets) == 0 < crossing(traffic, round_robin(traffic.experts, ranks))
    slack = imbalance(traffic, sets, ranks)  # the sets themselves are allowed
    assert crossing(traffic, place(traffic, ranks, slack).places) == 0


def test_layer_by_layer_alone_finds_less():
    """What the start from eigenvectors is there for: sets of experts that tokens leave often."""
    random = np.random.default_rng(1)
    sets = [random.permutation(np.arange(64) // 8) for _ in range(8)]
    steps = [(random.gamma(0.3, 20, (64, 64)) * np.where(a[:, None] == b, 4, 1)).astype(int) for a, b in pairwise(sets)]
    traffic = Traffic([str(i) for i in range(8)], [*(n.sum(1) for n in steps), steps[-1].sum(0)], steps)
    rooms = [Room(8, 8, int(load.sum())) for load in traffic.load]
    start = together(traffic, rooms, 8)
    assert start is not None
    alone, helped = (crossing(traffic, sweep(traffic, of, rooms, 8)) for of in (round_robin(traffic.experts, 8), start))
    assert helped < 0.98 * alone


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(2, 6), st.integers(2, 4))
def test_a_placement_is_balanced_and_no_worse_than_round_robin(seed, layers, experts, ranks):
    ranks = min(ranks, experts)
    traffic = drawn(seed, layers, experts, tokens=25)
    placed, plain = place(traffic, ranks), round_robin(traffic.experts, ranks)
    assert crossing(traffic, placed.places) <= crossing(traffic, plain)
    for load, of, before in zip(traffic.load, placed.places, plain, strict=True):
        held = np.bincount(of, minlength=ranks)
        assert len(of) == experts and held.max() - held.min() <= 1 and held.sum() == experts
        assert loads(load, of, ranks).max() <= max((1 + SLACK) * load.sum() / ranks, loads(load, before, ranks).max())


def test_the_same_is_found_again():
    traffic, _ = planted(4, 16, 4, seed=3)
    first, second = place(traffic, 4), place(traffic, 4)
    assert all(np.array_equal(a, b) for a, b in zip(first.places, second.places, strict=True))


def test_nothing_measured_is_round_robin_with_a_note():
    placed = place(Traffic.unknown(["a", "b"], [4, 6]), 2)
    assert [of.tolist() for of in placed.places] == [[0, 1, 0, 1], [0, 1, 0, 1, 0, 1]]
    assert "round-robin" in placed.notes[0]


def test_plain_placements():
    assert round_robin([5], 2)[0].tolist() == [0, 1, 0, 1, 0]
    assert blocks([5], 2)[0].tolist() == [0, 0, 0, 1, 1]
