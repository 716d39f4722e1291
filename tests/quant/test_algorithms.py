"""The algorithms against definitions that are written down here once more, plainly, in float64 and for one expert."""

import statistics
from dataclasses import dataclass

import pytest
import torch

from mocomp.errors import BadInput
from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.algorithms.awq import AWQ
from mocomp.quant.algorithms.gptq import GPTQ
from mocomp.quant.algorithms.hqq import HQQ
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.algorithms.search import Search
from mocomp.quant.balancing import balanced, candidates, losses
from mocomp.quant.formats import parse
from mocomp.quant.moments import columns, damped, factor
from mocomp.quant.refining import refined

EXPERTS, ROWS, COLUMNS, TOKENS = 3, 48, 128, 1024
DAMPING = 0.01


def moments_of(x: torch.Tensor) -> Moments:
    """x [E, T, K]."""
    return Moments(x.mT @ x, x.abs().mean(1), torch.full((len(x),), x.shape[1]))


@dataclass
class Planted:
    """Weights w [E, N, K]; inputs [E, T, K] that are correlated and have 4 channels that are 10 to 50 times the others."""

    w: torch.Tensor
    learned: torch.Tensor
    held_out: torch.Tensor

    def error(self, values: torch.Tensor) -> float:
        """Of the outputs for tokens that were held out, relative."""
        return float(((values - self.w) @ self.held_out.mT).norm() / (self.w @ self.held_out.mT).norm())


@pytest.fixture(params=[0, 1, 2])
def planted(request) -> Planted:
    return made(request.param)


def made(seed: int) -> Planted:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    size = torch.ones(COLUMNS)
    size[torch.randperm(COLUMNS, generator=generator)[:4]] = 10 + 40 * torch.rand(4, generator=generator)
    mix = normal(EXPERTS, COLUMNS // 8, COLUMNS) / (COLUMNS // 8) ** 0.5
    learned, held_out = (
        (0.8 * normal(EXPERTS, TOKENS, COLUMNS // 8) @ mix + 0.3 * normal(EXPERTS, TOKENS, COLUMNS)) * size for _ in range(2)
    )
    return Planted(normal(EXPERTS, ROWS, COLUMNS), learned, held_out)


class WithoutFeedback(GPTQ):
    """The fault of a GPTQ that does not tell the columns to come of its errors."""

    def codes(self, w, format, grid, second):
        return format.encode(w, grid)


class OfTheOppositeExpert(GPTQ):
    def codes(self, w, format, grid, second):
        return super().codes(w, format, grid, second.flip(0))


def textbook(w: torch.Tensor, second: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, form, order: bool) -> torch.Tensor:
    """Algorithm 1 of the paper without its blocks, for w [N, K], scale and zero [N, K], all of float64 -> codes."""
    hessian = second + DAMPING * second.diagonal().mean() * torch.eye(len(second), dtype=torch.float64)
    left = w.clone()
    codes = torch.zeros(w.shape, dtype=torch.uint8)
    todo = second.diagonal().argsort(descending=True, stable=True).tolist() if order else list(range(w.shape[1]))
    while todo:
        k = todo[0]
        inverse = torch.linalg.inv(hessian[todo][:, todo])
        codes[:, k] = form.nearest((left[:, k] / scale[:, k] + zero[:, k]).float())
        error = left[:, k] - (form.value(codes[:, k]) - zero[:, k]) * scale[:, k]
        left[:, todo] -= error[:, None] * inverse[0] / inverse[0, 0]
        todo = todo[1:]
    return codes


@pytest.mark.parametrize("text", ["int4:32", "int2:16:asym", "int8", "fp8:128x128", "fp8:tensor", "nvfp4", "mxfp4"])
@pytest.mark.parametrize("order", [True, False])
def test_gptq_is_that_of_the_paper(text, order, planted):
    """Each column's error is spread by the inverse of what is left of the Hessian, expert by expert."""
    form, second = parse(text), moments_of(planted.learned).second[:2]
    w = planted.w[:2]
    grid = form.fit(w)
    codes = GPTQ(damping=DAMPING, order=order).codes(w, form, grid, second)
    scale = form.spread(grid.scale, w.shape).expand(w.shape).double()
    zero = torch.full_like(scale, form.centre) if grid.zero is None else form.spread(grid.zero, w.shape).double()
    for e in range(len(w)):
        expected = textbook(w[e].double(), second[e].double(), scale[e], zero[e], form, order)
        differ = (codes[e] != expected).any(-1)
        assert differ.sum() <= 1  # a tie that rounds the other way moves the rest of its row


@pytest.mark.parametrize("k", [1, 63, 64, 65, 200])
def test_the_factor_is_choleskys(k):
    x = torch.randn(2, 300, k, generator=torch.Generator().manual_seed(0))
    lower = torch.linalg.cholesky(damped((x.mT @ x).double()))
    expected = (lower / lower.diagonal(dim1=-2, dim2=-1)[:, None]).tril(-1)
    assert torch.allclose(factor(x.mT @ x).tril(-1).double(), expected, rtol=1e-4, atol=1e-5)


def test_only_the_expert_that_needs_it_is_damped_more():
    second = torch.eye(COLUMNS).repeat(3, 1, 1)
    second[1] = 1.0  # of rank 1
    second[1, 0, 0] = 0.5  # and not even that of any data
    second[2, 1, 0] = second[2, 0, 1] = 0.5
    lower = factor(second)
    assert torch.allclose(lower[[0, 2], 1, 0], torch.tensor([0.0, 0.5 / (1 + DAMPING)]), atol=1e-6)
    mean = float(second[1].diagonal().mean())
    shares = [1 / (0.5 + DAMPING * power * mean) for power in (1, 10, 100, 1000)]
    assert float(lower[1, 1, 0]) == pytest.approx(shares[2], rel=1e-4)


def test_moments_that_are_no_numbers_are_refused(planted):
    known = moments_of(planted.learned)
    known.second[2, 5, 5] = float("nan")
    with pytest.raises(BadInput, match=r"experts \[2\] are no numbers"):
        GPTQ().quantise(planted.w, parse("int4:32"), known)


def test_a_column_without_inputs_is_left_alone(planted):
    """It gets no errors of others, and gives none to them."""
    form, known = parse("int4:32"), moments_of(planted.learned)
    known.second[:, 7], known.second[:, :, 7] = 0.0, 0.0
    grid, other = form.fit(planted.w), planted.w.clone()
    other[:, :, 7] = other[:, :, 7].flip(-1)
    codes, changed = (GPTQ().codes(w, form, grid, known.second) for w in (planted.w, other))
    rest = torch.arange(COLUMNS) != 7
    assert torch.equal(codes[:, :, 7], form.encode(planted.w, grid)[:, :, 7])
    assert torch.equal(codes[:, :, rest], changed[:, :, rest])


def test_without_tokens_gptq_is_search(planted):
    known = moments_of(planted.learned)
    known.second[1] = 0
    ours, theirs = (kind.quantise(planted.w, parse("int4:32"), known) for kind in (GPTQ(), Search()))
    assert torch.equal(ours[0][1], theirs[0][1]) and torch.equal(ours[1].scale, theirs[1].scale)
    assert not torch.equal(ours[0][0], theirs[0][0])


def ratio(algorithm: Algorithm, planted: Planted) -> float:
    """Its error relative to that of plain rounding."""
    form, known = parse("int4:32"), moments_of(planted.learned)
    plain = planted.error(form.decode(*RTN().quantise(planted.w, form, None)))
    return planted.error(form.decode(*algorithm.quantise(planted.w, form, known))) / plain


def is_gptq(algorithm: Algorithm, planted: Planted) -> None:
    assert ratio(algorithm, planted) < 0.3


@pytest.mark.parametrize("order", [True, False])
def test_gptq_lowers_the_error_of_outputs(order, planted):
    is_gptq(GPTQ(order=order), planted)


@pytest.mark.parametrize("fault", [WithoutFeedback(), OfTheOppositeExpert()], ids=lambda fault: type(fault).__name__)
def test_faults_of_gptq_are_noticed(fault, planted):
    with pytest.raises(AssertionError):
        is_gptq(fault, planted)


def test_hqq_lowers_the_error_of_outputs():
    """On average: what it gains in the few columns that count most is a matter of chance."""
    assert statistics.mean(ratio(HQQ(), made(seed)) for seed in range(8)) < 0.92


@pytest.mark.parametrize("weighed", [None, "columns", "products"])
@pytest.mark.parametrize("text", ["int4", "int4:32:asym", "int2:16", "fp8"])
def test_no_tile_is_worse_off_than_by_plain_rounding(weighed, text, planted):
    form, second = parse(text), damped(moments_of(planted.learned).second)
    given = {None: None, "columns": columns(moments_of(planted.learned).second), "products": second}[weighed]
    measure = {None: torch.eye(COLUMNS).expand_as(second), "columns": torch.diag_embed(given) if weighed else None}.get(
        weighed, second
    )
    size = form.block or COLUMNS

    def error(grid) -> torch.Tensor:
        """[E, N, G], from the whole matrix: each tile with its own columns."""
        d = (planted.w - form.decode(form.encode(planted.w, grid), grid)).double()
        parts = [slice(k, k + size) for k in range(0, COLUMNS, size)]
        return torch.stack([((d[..., p] @ measure[:, p, p].double()) * d[..., p]).sum(-1) for p in parts], -1)

    ours, plain = error(refined(planted.w, form, given)), error(form.fit(planted.w))
    assert (ours <= plain * (1 + 1e-4)).all() and ours.sum() < 0.97 * plain.sum()


@pytest.mark.parametrize("each", [False, True])
def test_losses_are_errors_of_outputs(each, planted):
    """By running the tokens through the weights, which `losses` has never seen."""
    form, known = parse("int4:32"), moments_of(planted.learned)
    tried = candidates(known.magnitude if each else known.magnitude.mean(0), steps=4)
    found = losses(planted.w, form, known, tried)
    for a, scale in enumerate(tried):
        by_column = scale[:, None] if each else scale
        scaled = planted.w * by_column
        values = form.decode(*RTN().quantise(scaled, form, None))
        outputs = (planted.learned / by_column) @ values.mT - planted.learned @ planted.w.mT
        expected = outputs.double().square().sum((-2, -1))
        assert torch.allclose(found[a].double(), expected if each else expected.sum(), rtol=1e-3)


def test_the_first_candidate_is_no_scaling_and_all_are_centred(planted):
    magnitude = moments_of(planted.learned).magnitude
    magnitude[0, 3], magnitude[2] = 0.0, 0.0
    tried = candidates(magnitude)
    assert tried.shape == (20, EXPERTS, COLUMNS) and (tried[0] == 1).all() and (tried[:, 2] == 1).all()
    assert torch.allclose(tried.amax(-1) * tried.amin(-1), torch.ones(20, EXPERTS), rtol=1e-4)
    ratio = tried[-1, 1] / magnitude[1]
    assert torch.allclose(ratio, ratio[:1].expand_as(ratio), rtol=1e-4)


def test_moments_of_scaled_inputs(planted):
    scale = candidates(moments_of(planted.learned).magnitude)[13]
    ours, expected = balanced(moments_of(planted.learned), scale), moments_of(planted.learned / scale[:, None])
    assert torch.allclose(ours.second, expected.second, rtol=1e-3, atol=1e-2)
    assert torch.allclose(ours.magnitude, expected.magnitude, rtol=1e-4)


@pytest.mark.parametrize("each", [False, True])
def test_awq_lowers_the_error_of_outputs(each, planted):
    """Balanced and clipped it is better than balanced alone, and that than plain rounding."""
    form, known = parse("int4:32"), moments_of(planted.learned)
    tried = candidates(known.magnitude if each else known.magnitude.mean(0))
    best = losses(planted.w, form, known, tried).argmin(0)
    scale = tried[best, torch.arange(EXPERTS)] if each else tried[best]
    by_column = scale[:, None] if each else scale
    plain, scaled, clipped = (
        planted.error(form.decode(*kind.quantise(planted.w * s, form, balanced(known, scale))) / s)
        for kind, s in ((RTN(), torch.ones(())), (RTN(), by_column), (AWQ(), by_column))
    )
    assert clipped < 0.75 * scaled and scaled < 0.95 * plain
