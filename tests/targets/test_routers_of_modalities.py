"""Each router through all passes and ONNX Runtime, on experts in groups, one per modality, against its paper's formula.

The reference routes each modality apart, with loops over its tokens and experts in float64; it calls no router.
Dimension letters: T tokens, E experts, K chosen, M modalities, H hidden.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch.nn import functional

from mocomp.experts import Expert
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.ir.specs import spell
from mocomp.opening import open_target
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.common_subexpressions import CommonSubexpressions
from mocomp.passes.fuse_routing import FuseRouting
from mocomp.routers import Router
from mocomp.routers.auxiliary import Auxiliary
from mocomp.routers.expert_choice import ExpertChoice
from mocomp.routers.sigmoid_topk import SigmoidTopK
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.routers.sparse_mixer import SparseMixer
from mocomp.routers.topk_softmax import TopKSoftmax
from mocomp.routers.topk_uniform import TopKUniform
from mocomp.targets import Artifact, Runner
from mocomp.weights.writer import Writer
from tests.programs import EXPERTS, HIDDEN, WIDTH, Traced, mixture, trace

K = 2
SIZES = {"one group": (8,), "two groups": (3, 5), "three groups": (2, 2, 4)}
"""Experts of each modality."""
TOKENS = {1: (0,), 7: (0, 1), 40: (0, 1, 2)}
"""Which of the modalities are there among so many tokens; the trace has 7 tokens."""
TARGET = open_target("onnxruntime")


# The formulas: the logits [E_m] of a token, the bias [E_m] -> weights [E_m].


def softmax(z: np.ndarray) -> np.ndarray:
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


def only(chosen: np.ndarray, values: np.ndarray) -> np.ndarray:
    result = np.zeros_like(values)
    result[chosen] = values[chosen]
    return result


def best(z: np.ndarray) -> np.ndarray:
    return np.argsort(-z)[:K]


def mixtral(z: np.ndarray, bias: np.ndarray) -> np.ndarray:
    p = only(best(z), softmax(z))
    return p / p.sum()


def shazeer(z: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return only(best(z), softmax(z))


def deepseek(z: np.ndarray, bias: np.ndarray) -> np.ndarray:
    s = only(best(sigmoid(z) + bias), sigmoid(z))
    return s / s.sum()


def sigmoids(z: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return only(best(sigmoid(z) + bias), sigmoid(z))


def sparsemixer(z: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """The best weighs among those within 2 epsilon of it; then the same without it."""
    result, left = np.zeros_like(z), z.copy()
    for _ in range(K):
        e = int(left.argmax())
        near = (left[e] - z) / np.maximum(np.abs(z), left[e]) <= 2 * 0.05
        result[e] = softmax(np.where(near, left, -np.inf))[e]
        left[e] = -np.inf
    return result


def carved(z: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return only(best(z), np.ones_like(z))


# The same of all tokens of a modality: logits, auxiliary logits [T_m, E_m], bias [E_m] -> weights [T_m, E_m].


def per_token(formula: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda z, auxiliary, bias: np.stack([formula(row, bias) for row in z])


def experts_choose(factor: str, score: Callable[[np.ndarray], np.ndarray]) -> Callable[..., np.ndarray]:
    def weights(z: np.ndarray, auxiliary: np.ndarray, bias: np.ndarray) -> np.ndarray:
        s = np.stack([score(row) for row in z])
        capacity = math.ceil(Fraction(factor) * len(z) / z.shape[1])
        result = np.zeros_like(s)
        for e in range(z.shape[1]):
            for t in np.argsort(-s[:, e])[:capacity]:
                result[t, e] = s[t, e]
        return result

    return weights


def foretold(z: np.ndarray, auxiliary: np.ndarray, bias: np.ndarray) -> np.ndarray:
    return np.where(sigmoid(auxiliary) > 0.5, sigmoid(z), 0.0)


ROUTERS: dict[str, tuple[Router, Callable[..., np.ndarray]]] = {
    "softmax top-k, divided": (SoftmaxTopK(K, normalize=True), per_token(mixtral)),
    "softmax top-k": (SoftmaxTopK(K), per_token(shazeer)),
    "top-k softmax": (TopKSoftmax(K), per_token(mixtral)),
    "sigmoid, divided": (SigmoidTopK(K, masked=True), per_token(deepseek)),
    "sigmoid": (SigmoidTopK(K, normalize=False, masked=True), per_token(sigmoids)),
    "sparse mixer": (SparseMixer(K, jitter=0.05), per_token(sparsemixer)),
    "top-k uniform": (TopKUniform(K), per_token(carved)),
    "expert choice": (ExpertChoice(EXPERTS), experts_choose("1", softmax)),
    "expert choice, sigmoid": (ExpertChoice(EXPERTS, 1.3, "sigmoid"), experts_choose("1.3", sigmoid)),
    "expert choice, all": (ExpertChoice(EXPERTS, float(2 * EXPERTS), "sigmoid"), experts_choose("16", sigmoid)),
    "auxiliary": (Auxiliary(EXPERTS), foretold),
}


@dataclass
class Lowered:
    """A mixture with its tensors, and what ONNX Runtime makes of it."""

    traced: Traced
    artifact: Artifact
    runner: Runner

    def run(self, x: torch.Tensor, allowed: torch.Tensor) -> np.ndarray:
        (y,) = self.runner.run({"x": x.numpy(), "allowed": allowed.numpy()}).values()
        return y


def routing(router: Router, expert: Expert) -> torch.nn.Module:
    def route(m, x, allowed):
        logits = torch.where(allowed, functional.linear(x, m.gate), float("-inf"))
        tensors = [m.bias] if isinstance(router, SigmoidTopK) else []
        tensors = [functional.linear(x, m.auxiliary)] if isinstance(router, Auxiliary) else tensors
        return torch.ops.mocomp.route(logits, tensors, spell(router))

    return mixture(route, expert, lambda m, x: x, bias=(EXPERTS,), auxiliary=(EXPERTS, HIDDEN))


@pytest.fixture(scope="module")
def lowered(tmp_path_factory) -> Callable[..., Lowered]:
    """lowered(router, expert, experts whose weights are NaN)."""

    @functools.cache
    def made(router: Router, expert: Expert, broken: tuple[int, ...] = ()) -> Lowered:
        traced = trace(routing(router, expert), allowed=torch.ones(7, EXPERTS, dtype=torch.bool))
        for name in ("w_in", "w_out"):
            traced.tensors[name] = traced.tensors[name].clone()
            traced.tensors[name][list(broken)] = float("nan")
        for step in (Clean(), FuseRouting(), *TARGET.passes(), CommonSubexpressions()):
            run(step, traced.program)
        directory = tmp_path_factory.mktemp("lowered")
        artifact = TARGET.lower(traced.program, directory, Writer(traced.read))
        return Lowered(traced, artifact, TARGET.open(directory))

    return made


def groups(sizes: tuple[int, ...]) -> torch.Tensor:
    """The modality of each expert [E]."""
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


def modalities(count: int, sizes: tuple[int, ...]) -> torch.Tensor:
    """The modality of each token [T]."""
    there = [m for m in TOKENS[count] if m < len(sizes)]
    return torch.tensor(there)[torch.arange(count) % len(there)]


def hidden(count: int) -> torch.Tensor:
    return torch.randn(count, HIDDEN, generator=torch.Generator().manual_seed(count))


def expected(tensors: dict[str, torch.Tensor], formula: Callable[..., np.ndarray], x: torch.Tensor, of_token, of_expert):
    """y [T, H] of swiglu experts, one modality after the other."""
    gate, auxiliary, bias, w_in, w_out = (
        tensors[name].double().numpy() for name in ("gate", "auxiliary", "bias", "w_in", "w_out")
    )
    y = np.zeros((len(x), HIDDEN))
    for m in set(of_token.tolist()):
        rows, own = np.flatnonzero(of_token.numpy() == m), np.flatnonzero(of_expert.numpy() == m)
        x_m = x.double().numpy()[rows]
        weights = formula(x_m @ gate[own].T, x_m @ auxiliary[own].T, bias[own])
        for t, e in zip(*np.nonzero(weights), strict=True):
            h = w_in[own[e]] @ x_m[t]
            h = h[:WIDTH] * sigmoid(h[:WIDTH]) * h[WIDTH:]
            y[rows[t]] += weights[t, e] * (w_out[own[e]] @ h)
    return y


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", ROUTERS)
def test_the_numbers_are_those_of_the_paper(lowered, name, sizes, tokens):
    router, formula = ROUTERS[name]
    made = lowered(router, GLU())
    x, of_token, of_expert = hidden(tokens), modalities(tokens, sizes), groups(sizes)
    y = expected(made.traced.tensors, formula, x, of_token, of_expert)
    actual = made.run(x, of_token[:, None] == of_expert)
    assert np.abs(actual - y).max() <= 3e-6 * np.abs(y).max()


@pytest.mark.parametrize("name", ROUTERS)
def test_the_fused_operator_runs_whatever_chooses_a_fixed_number(lowered, name):
    router, _ = ROUTERS[name]
    made = lowered(router, GLU())
    assert made.artifact.operators.get("MoE", 0) == (1 if router.fixed else 0)
    assert len(made.artifact.mixtures) == made.artifact.operators.get("MoE", 0)


@pytest.mark.parametrize("name", ["expert choice", "auxiliary"])
def test_a_token_that_no_expert_takes_becomes_nothing(lowered, name):
    """One that may have none, and those that no expert of three takes."""
    made = lowered(ROUTERS[name][0], GLU())
    allowed = (groups((3, 5)) == 0).repeat(40, 1)
    allowed[3] = False
    y = made.run(hidden(40), allowed)
    empty = (y == 0).all(-1)
    assert np.isfinite(y).all() and empty[3] and 1 < empty.sum() < 40


REACHED = {
    **{name: (router, GLU()) for name, (router, _) in ROUTERS.items()},
    "an expert that is not fused": (TopKSoftmax(K), FFN("quick_gelu")),
    "an expert that is not fused, sigmoid": (SigmoidTopK(K, masked=True), GLU("gelu")),
}


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("name", REACHED)
def test_experts_that_no_token_reached_do_not_matter(lowered, name, tokens):
    """NaN in the weights of a modality that is not there leaves every bit, fused or not."""
    sizes = SIZES["two groups"]
    allowed = (groups(sizes) == 0).expand(tokens, -1)
    broken = tuple(range(sizes[0], EXPERTS))
    y = lowered(*REACHED[name]).run(hidden(tokens), allowed)
    assert np.abs(y).max() > 0
    assert np.array_equal(lowered(*REACHED[name], broken).run(hidden(tokens), allowed), y)


def test_experts_that_were_reached_do_matter(lowered):
    """Otherwise the test above would prove nothing."""
    for name, (router, expert) in REACHED.items():
        made = lowered(router, expert, tuple(range(3, EXPERTS)))
        assert np.isnan(made.run(hidden(7), torch.ones(7, EXPERTS, dtype=torch.bool))).any(), name
