"""Every router against its paper's formula, written as loops over tokens and experts in float64 that call no router.

Dimension letters: T tokens, B sequences of S tokens, E experts.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from mocomp.registry import discover
from mocomp.routers import Router
from mocomp.routers.capacity_reroute import CapacityReroute
from mocomp.routers.cosine_threshold import CosineThreshold
from mocomp.routers.distilled import Distilled
from mocomp.routers.dselect_k import DSelectK
from mocomp.routers.expert_choice_sequence import ExpertChoiceSequence
from mocomp.routers.gap import Gap
from mocomp.routers.gumbel_softmax import GumbelSoftmax
from mocomp.routers.null import Null
from mocomp.routers.per_image import PerImage
from mocomp.routers.product_key import ProductKey
from mocomp.routers.relu import Relu
from mocomp.routers.softmax_group_topk import SoftmaxGroupTopK
from mocomp.routers.threshold import Threshold
from mocomp.routers.top_p import TopP
from mocomp.routers.topk_threshold import TopKThreshold
from mocomp.routers.two_level import TwoLevel
from tests.laws.router_laws import close, shares

EXPERTS, SEQUENCES, LENGTH = 8, 3, 11
TOKENS = SEQUENCES * LENGTH
Weights = dict[int, float]
"""Of the experts that a token is given."""


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def divided(weights: Weights) -> Weights:
    return {e: w / sum(weights.values()) for e, w in weights.items()}


def in_order(p: np.ndarray) -> list[int]:
    return sorted(range(len(p)), key=lambda e: -p[e])


# One token each: its logits, and its row of each tensor or the whole tensor -> its experts with their weights.


def huang(z: np.ndarray) -> Weights:
    """Until the sum reaches 0.6."""
    p, chosen = softmax(z), {}
    for e in in_order(p):
        if sum(chosen.values()) >= 0.6:
            break
        chosen[e] = p[e]
    return chosen


def xmoe_of_two(z: np.ndarray) -> Weights:
    """Until the sum reaches 0.9, but two at most, divided."""
    p, chosen = softmax(z), {}
    while sum(chosen.values()) < 0.9 and len(chosen) < 2:
        e = in_order(p)[len(chosen)]
        chosen[e] = p[e]
    return divided(chosen)


def adaptive_gating(z: np.ndarray) -> Weights:
    p = softmax(z)
    a, b = in_order(p)[:2]
    return {a: p[a]} if p[a] - p[b] > 0.3 else {a: p[a], b: p[b]}


def st_moe(z: np.ndarray) -> Weights:
    p = softmax(z)
    a, b = in_order(p)[:2]
    both = divided({a: p[a], b: p[b]})
    return {e: w for e, w in both.items() if e == a or w > 0.2}


def above_a_share(z: np.ndarray) -> Weights:
    p = softmax(z)
    return {e: p[e] for e in range(len(p)) if p[e] > 0.2 or e == in_order(p)[0]}


def above_a_score(z: np.ndarray) -> Weights:
    """Of a sigmoid, divided; maybe none."""
    s = sigmoid(z)
    return divided({e: s[e] for e in range(len(s)) if s[e] > 0.9})


def dynmoe(z: np.ndarray, g: np.ndarray) -> Weights:
    chosen = [e for e in range(len(z)) if sigmoid(z[e]) > sigmoid(g[e])] or [int(z.argmax())]
    return {e: 1 / len(chosen) for e in chosen}


def adamoe(z: np.ndarray) -> Weights:
    """Eight experts and four null ones, of which three are chosen."""
    p = softmax(z)
    real = {e: p[e] for e in in_order(p)[:3] if e < 8}
    return divided(real)


def remoe(z: np.ndarray) -> Weights:
    return {e: z[e] for e in range(len(z)) if z[e] > 0}


def tempered(z: np.ndarray) -> Weights:
    return dict(enumerate(softmax(z / 0.5)))


def smile(z: np.ndarray, u: np.ndarray) -> Weights:
    """The best expert of the best of four groups."""
    group = int(u.argmax())
    inside = softmax(z[2 * group : 2 * group + 2])
    best = int(inside.argmax())
    return {2 * group + best: softmax(u)[group] * inside[best]}


def smile_of_two_groups(z: np.ndarray, u: np.ndarray) -> Weights:
    """The best experts of each of the two best groups of four."""
    found = {}
    for group in in_order(u)[:2]:
        inside = softmax(z[2 * group : 2 * group + 2])
        best = int(inside.argmax())
        found[2 * group + best] = softmax(u)[group] * inside[best]
    return found


def dselect(z: np.ndarray) -> Weights:
    """Three selectors of three bits over five experts, gamma 2."""
    mixing, total = softmax(z[9:]), dict.fromkeys(range(5), 0.0)
    for i in range(3):
        for e in range(5):
            picked = 1.0
            for j in range(3):
                t = z[3 * i + j]
                step = 0.0 if t <= -1 else 1.0 if t >= 1 else -2 / 8 * t**3 + 3 / 4 * t + 1 / 2
                picked *= step if (e >> j) & 1 else 1 - step
            total[e] += mixing[i] * picked
    return total


def peer(z: np.ndarray) -> Weights:
    """Five of the sixteen pairs of 4 + 4 sub-keys."""
    sums = {4 * i + j: z[i] + z[4 + j] for i in range(4) for j in range(4)}
    best = sorted(sums, key=lambda e: -sums[e])[:5]
    return dict(zip(best, softmax(np.array([sums[e] for e in best])), strict=True))


def deepseek_v2(z: np.ndarray) -> Weights:
    """Three experts of the two best of four groups, a group by its best; divided, times 1.5."""
    p = softmax(z)
    kept = sorted(range(4), key=lambda g: -max(p[2 * g], p[2 * g + 1]))[:2]
    best = [e for e in in_order(p) if e // 2 in kept][:3]
    return {e: 1.5 * w for e, w in divided({e: p[e] for e in best}).items()}


def stable_moe(z: np.ndarray, d: np.ndarray) -> Weights:
    return {int(d.argmax()): sigmoid(z)[d.argmax()]}


def per_token(formula: Callable[..., Weights], experts: int = EXPERTS) -> Callable[..., np.ndarray]:
    """Of all tokens; a tensor of two dimensions has a row for each, any other is for all."""

    def weights(z: np.ndarray, *tensors: np.ndarray) -> np.ndarray:
        result = np.zeros((len(z), experts))
        for t in range(len(z)):
            for e, w in formula(z[t], *(tensor[t] if tensor.ndim == 2 else tensor for tensor in tensors)).items():
                result[t, e] = w
        return result

    return weights


# All tokens, which see each other: logits [T, E] or [B, S, E] -> weights [T, E].


def mobile(z: np.ndarray) -> np.ndarray:
    """The two best of an image, divided."""
    found = np.zeros(z.shape)
    for b in range(len(z)):
        p = softmax(z[b].mean(0))
        for e in in_order(p)[:2]:
            found[b, :, e] = p[e] / sum(p[i] for i in in_order(p)[:2])
    return found.reshape(-1, z.shape[-1])


def zhou_by_sequence(z: np.ndarray, factor: str = "2.1", round_to: Callable = math.ceil, score=softmax) -> np.ndarray:
    found = np.zeros(z.shape)
    room = max(1, round_to(Fraction(factor) * z.shape[1] / z.shape[2]))
    for b in range(len(z)):
        s = np.stack([score(row) for row in z[b]])
        for e in range(z.shape[2]):
            for t in in_order(s[:, e])[:room]:
                found[b, t, e] = s[t, e]
    return found.reshape(-1, z.shape[-1])


def mixture_of_depths(z: np.ndarray) -> np.ndarray:
    """Half of the tokens, rounded down."""
    return zhou_by_sequence(z, "1/2", math.floor, sigmoid)


def rerouted(z: np.ndarray) -> np.ndarray:
    """Two experts for each token, room for 0.7 of the tokens in all."""
    p = np.stack([softmax(row) for row in z])
    room = [math.ceil(Fraction("0.7") * 2 * len(z) / z.shape[1])] * z.shape[1]
    found: list[Weights] = [{} for _ in z]
    for j in range(z.shape[1]):
        asked: dict[int, list[int]] = {}
        for t in range(len(z)):
            if len(found[t]) < 2:
                asked.setdefault(in_order(p[t])[j], []).append(t)
        for e, tokens in asked.items():
            for t in sorted(tokens, key=lambda t, e=e: -p[t, e])[: room[e]]:
                found[t][e] = p[t, e]
                room[e] -= 1
    result = np.zeros(z.shape)
    for t, weights in enumerate(found):
        for e, w in weights.items():
            result[t, e] = w
    return result


REFERENCES: dict[str, tuple[Router, int, tuple[tuple[int | None, ...], ...], Callable[..., np.ndarray]]] = {
    "top-p": (TopP(8, 0.6), 8, (), per_token(huang)),
    "top-p, two at most": (TopP(8, 0.9, normalize=True, most=2), 8, (), per_token(xmoe_of_two)),
    "gap": (Gap(2, 0.3), 8, (), per_token(adaptive_gating)),
    "top-k above a threshold": (TopKThreshold(2, 0.2), 8, (), per_token(st_moe)),
    "threshold": (Threshold(8, 0.2), 8, (), per_token(above_a_share)),
    "threshold of a sigmoid": (Threshold(8, 0.9, "sigmoid", True, False), 8, (), per_token(above_a_score)),
    "learned thresholds": (CosineThreshold(8), 8, ((8,),), per_token(dynmoe)),
    "null experts": (Null(3, 4), 8, (), per_token(adamoe)),
    "relu": (Relu(8), 8, (), per_token(remoe)),
    "softmax over all": (GumbelSoftmax(8, 0.5), 8, (), per_token(tempered)),
    "two levels": (TwoLevel(1, 4), 8, ((None, 4),), per_token(smile)),
    "two levels, two groups": (TwoLevel(2, 4, 2), 8, ((None, 4),), per_token(smile_of_two_groups)),
    "dselect-k": (DSelectK(5, 3, 2.0), 5, (), per_token(dselect, 5)),
    "product keys": (ProductKey(5), 16, (), per_token(peer, 16)),
    "groups by their best": (SoftmaxGroupTopK(3, 4, 2, True, 1.5), 8, (), per_token(deepseek_v2)),
    "distilled": (Distilled(1), 8, ((None, 8),), per_token(stable_moe)),
    "one decision for an image": (PerImage(2, True), 8, (), mobile),
    "expert choice by sequence": (ExpertChoiceSequence(8, 2.1), 8, (), zhou_by_sequence),
    "mixture of depths": (ExpertChoiceSequence(1, 0.5, "sigmoid", "down"), 1, (), mixture_of_depths),
    "rerouted": (CapacityReroute(8, 2, 0.7), 8, (), rerouted),
}
ELSEWHERE = {
    "auxiliary", "expert_choice", "sigmoid_topk", "softmax_bias_topk", "softmax_topk", "sparse_mixer", "topk_softmax",
    "topk_uniform", "batch_priority", "capacity", "capacity_sequence",
}  # fmt: skip
"""Kinds whose references are in tests/targets/test_routers_of_modalities.py and with the files that bring them."""


def draw(name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits on which no two scores are alike, and the tensors, in float64."""
    router, experts, shapes, _ = REFERENCES[name]
    generator = torch.Generator().manual_seed(len(name))
    tokens = (SEQUENCES, LENGTH) if router.per_sequence else (TOKENS,)
    logits = 2 * torch.randn(*tokens, router.columns(experts), generator=generator, dtype=torch.float64)
    sizes = [(*tokens, *rest) if rows is None else (rows, *rest) for rows, *rest in shapes]
    return logits, [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", REFERENCES)
def test_a_router_is_its_papers_formula(name):
    router, experts, _, formula = REFERENCES[name]
    logits, tensors = draw(name)
    expected = formula(logits.numpy(), *(tensor.numpy() for tensor in tensors))
    actual = shares(*router.choose(logits, *tensors), experts).numpy()
    assert ((actual > 0) == (expected > 0)).all()
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", REFERENCES)
def test_its_parameters_matter(name):
    """Another router of the kind is not what the formula says, so that the comparison is one of parameters too."""
    router, experts, shapes, formula = REFERENCES[name]
    logits, tensors = draw(name)
    expected = torch.from_numpy(formula(logits.numpy(), *(tensor.numpy() for tensor in tensors)))
    for example in type(router).examples():
        if example.router != router and (example.experts, example.tensors) == (experts, shapes):
            if example.router.columns(experts) != router.columns(experts):
                continue
            assert not close(shares(*example.router.choose(logits, *tensors), experts), expected), example


def test_every_kind_has_a_reference():
    kinds = {router.name for router, *_ in REFERENCES.values()}
    assert kinds | ELSEWHERE == set(discover("mocomp.routers", "Router")) and not kinds & ELSEWHERE


def test_the_draws_tell_cases_apart():
    """Some tokens are on either side of what their router decides, so that no branch of a formula goes unseen."""
    for name in ("top-p", "gap", "top-k above a threshold", "threshold", "null experts", "dselect-k", "learned thresholds"):
        router, experts, _, _ = REFERENCES[name]
        logits, tensors = draw(name)
        counts = (shares(*router.choose(logits, *tensors), experts) > 0).sum(-1)
        assert len(counts.unique()) > 1, name
