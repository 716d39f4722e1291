"""What holds of every kind of router; adding a file to mocomp/routers adds its tests."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mocomp.ir import ops  # noqa: F401  (registers mocomp::route)
from mocomp.ir.specs import parse, spell
from mocomp.registry import discover
from mocomp.routers import Evidence, Router
from tests.programs import Formula, trace

EXPERTS, TOKENS = 8, 33
KINDS = discover("mocomp.routers", "Router")


class Everything(frozenset):
    """The ops of a subgraph that holds every op."""

    def __contains__(self, item: object) -> bool:
        return True


@functools.cache
def samples() -> dict[str, tuple[Router, tuple[tuple[int, ...], ...]]]:
    """Every router that some evidence suggests, as its own `guesses` say, with the shapes of its tensors."""
    found = {}
    for k in (1, 3):
        for tensors in ((), ((EXPERTS,),)):
            evidence = Evidence(EXPERTS, k, tensors, Everything(), (k, 2, 4), frozenset({0.02, 0.5, 2.0}))
            for kind in KINDS.values():
                for router in kind.guesses(evidence):
                    found[f"{spell(router)} {len(tensors)} tensors"] = (router, tensors)
    return found


def having(form: Callable[[Router], object]) -> Callable:
    """For laws of an optional form: the samples of routers that have it."""
    names = [name for name, (router, _) in samples().items() if form(router) is not None]
    return pytest.mark.parametrize("case", names, indirect=True)


@pytest.fixture(params=samples(), ids=lambda name: name)
def case(request) -> tuple[Router, torch.Tensor, list[torch.Tensor]]:
    """A router, logits [T, E] on which no two scores are alike, and its tensors."""
    router, shapes = samples()[request.param]
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(TOKENS, EXPERTS, generator=generator)
    return router, logits, [0.3 * torch.randn(shape, generator=generator) for shape in shapes]


def shares(ids: torch.Tensor, weights: torch.Tensor, experts: int = EXPERTS) -> torch.Tensor:
    return torch.zeros(len(ids), experts).scatter_add(1, ids, weights)


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_every_kind_has_a_sample():
    """A kind that no evidence suggests would never be recognised, nor tested here."""
    assert {type(router) for router, _ in samples().values()} == set(KINDS.values())


def test_chooses_distinct_experts_that_exist(case):
    router, logits, tensors = case
    ids, _ = router.choose(logits, *tensors)
    assert ids.shape == (TOKENS, router.k) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < EXPERTS
    assert all(len(set(row)) == router.k for row in ids.tolist())


def test_weights_are_finite_and_not_negative(case):
    """Also where logits are huge, as those of untrained or of very confident routers are."""
    router, logits, tensors = case
    for scale in (0.0, 1.0, 1e3):
        ids, weights = router.choose(scale * logits, *tensors)
        assert weights.shape == ids.shape and weights.dtype == logits.dtype
        assert weights.isfinite().all() and (weights >= 0).all()


def test_weights_sum_to_what_the_router_declares(case):
    router, logits, tensors = case
    total = router.choose(logits, *tensors)[1].sum(-1)
    softmax, log_scores = router.as_softmax(), router.as_log_scores()
    if softmax is not None and softmax.over_chosen:
        assert close(total, torch.full_like(total, softmax.scale))
    elif softmax is not None:
        assert (total <= softmax.scale + 1e-6).all() and (total < softmax.scale - 1e-3).any()
    elif log_scores is not None:
        assert close(total, torch.full_like(total, log_scores.scale))


def test_experts_have_no_names(case):
    """Experts in another order are chosen in that order; where they stand in groups, groups move as a whole."""
    router, logits, tensors = case
    groups = getattr(router, "groups", 1)
    moved = torch.randperm(groups, generator=torch.Generator().manual_seed(2))
    order = torch.arange(EXPERTS).reshape(groups, -1)[moved].flatten()
    if groups == 1:
        order = torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(2))
    before = shares(*router.choose(logits, *tensors))
    after = shares(*router.choose(logits[:, order], *(t[order] for t in tensors)))
    assert close(after, before[:, order])


def test_tokens_do_not_see_each_other(case):
    router, logits, tensors = case
    ids, weights = router.choose(logits, *tensors)
    alone = [router.choose(row[None], *tensors) for row in logits]
    assert torch.equal(torch.cat([i for i, _ in alone]), ids)
    assert close(torch.cat([w for _, w in alone]), weights)


def test_traces_with_any_number_of_tokens(case):
    """Both ways in which it is traced: inlined into a program, and with a program as torch.export makes it."""
    router, logits, tensors = case
    inlined = make_fx(router.choose, tracing_mode="symbolic")(logits, *tensors)
    exported = trace(
        Formula(lambda m, x: router.choose(x, *(getattr(m, n) for n in m._parameters)), **_named(tensors)), width=EXPERTS
    )
    for tokens in (2, TOKENS - 1):
        expected = router.choose(logits[:tokens], *tensors)
        assert all(torch.equal(a, b) for a, b in zip(inlined(logits[:tokens], *tensors), expected, strict=True))
        exported.inputs, exported.tensors = {"x": logits[:tokens]}, dict(zip(_named(tensors), tensors, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(exported.run(), expected, strict=True))


def _named(tensors: list[torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {f"tensor{i}": tuple(tensor.shape) for i, tensor in enumerate(tensors)}


def test_the_op_is_the_router(case):
    """mocomp::route with the router as text: the same numbers, and a shape function that tells the truth."""
    router, logits, tensors = case
    spec = spell(router)
    assert parse("mocomp.routers", "Router", spec) == router
    results = torch.ops.mocomp.route(logits, tensors, spec)
    assert all(torch.equal(a, b) for a, b in zip(results, router.choose(logits, *tensors), strict=True))
    torch.library.opcheck(
        torch.ops.mocomp.route.default, (logits, tensors, spec), test_utils=("test_schema", "test_faketensor")
    )


@having(lambda router: router.as_softmax())
def test_the_form_for_fused_softmax_operators_is_the_router(case):
    router, logits, tensors = case
    form = router.as_softmax()
    values, ids = torch.topk(logits, router.k, -1)
    weights = torch.softmax(values if form.over_chosen else logits, -1)
    weights = weights if form.over_chosen else weights.gather(-1, ids)
    assert close(shares(ids, weights * form.scale), shares(*router.choose(logits, *tensors)))


@having(lambda router: router.as_log_scores())
def test_the_form_of_log_scores_is_the_router(case):
    router, logits, tensors = case
    form = router.as_log_scores()
    scores = form.function(logits, *tensors)
    assert scores.shape == logits.shape and ((scores > float("-inf")).sum(-1) == router.k).all()
    assert close(torch.softmax(scores, -1) * form.scale, shares(*router.choose(logits, *tensors)))


@having(lambda router: router.scaled(2.5))
def test_a_factor_that_is_taken_in_is_a_factor(case):
    router, logits, tensors = case
    scaled = router.scaled(2.5)
    (ids, weights), (same_ids, larger) = (r.choose(logits, *tensors) for r in (router, scaled))
    assert torch.equal(ids, same_ids) and close(larger, 2.5 * weights)
    assert scaled.scaled(0.4) == router
