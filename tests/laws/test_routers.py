"""What holds of every kind of router; adding a file to mocomp/routers adds its tests."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mocomp.errors import MocompError, Unsupported
from mocomp.ir import ops  # noqa: F401  (registers mocomp::route)
from mocomp.ir.specs import parse, spell
from mocomp.registry import discover
from mocomp.routers import Evidence, Router
from mocomp.routers.auxiliary import Auxiliary
from mocomp.routers.expert_choice import ExpertChoice
from mocomp.routers.sigmoid_topk import SigmoidTopK
from tests.programs import Formula, trace

EXPERTS, TOKENS = 8, 33
KINDS = discover("mocomp.routers", "Router")
NEVER_GUESSED: list[tuple[Router, tuple[tuple[int, ...], ...]]] = [
    (SigmoidTopK(3, masked=True), ((EXPERTS,),)),
    (ExpertChoice(EXPERTS, 2.0), ()),
    (ExpertChoice(EXPERTS, 1.3, "sigmoid"), ()),
    (Auxiliary(EXPERTS), ((TOKENS, EXPERTS),)),
]
"""Routers that models of mocomp ask for by name and no traced graph is taken for, with the shapes of their tensors."""


class Everything(frozenset):
    """The ops of a subgraph that holds every op."""

    def __contains__(self, item: object) -> bool:
        return True


@functools.cache
def samples() -> dict[str, tuple[Router, tuple[tuple[int, ...], ...]]]:
    """Every router that some evidence suggests, as its own `guesses` say, and `NEVER_GUESSED`."""
    found = {f"{spell(router)} {len(tensors)} tensors": (router, tensors) for router, tensors in NEVER_GUESSED}
    for k in (1, 3):
        for tensors in ((), ((EXPERTS,),)):
            evidence = Evidence(EXPERTS, k, tensors, Everything(), (k, 2, 4), frozenset({0.02, 0.5, 2.0}))
            for kind in KINDS.values():
                for router in kind.guesses(evidence):
                    found[f"{spell(router)} {len(tensors)} tensors"] = (router, tensors)
    return found


def having(form: Callable[[Router], object]) -> Callable:
    """For laws of an optional form: the samples of routers that have it (not None and not False)."""
    names = [name for name, (router, _) in samples().items() if form(router) not in (None, False)]
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


def of_tokens(tensors: list[torch.Tensor], rows: Any) -> list[torch.Tensor]:
    """The router's tensors for some of the tokens: those that have a row per token [T, E], cut; others [E] as they are."""
    return [tensor[rows] if tensor.ndim == 2 else tensor for tensor in tensors]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def test_every_kind_has_a_sample():
    """A kind that no evidence suggests is never recognised, and has to be in `NEVER_GUESSED` to be tested here."""
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


def test_says_whether_every_token_has_k_experts(case):
    router, logits, tensors = case
    chosen = (router.choose(logits, *tensors)[1] > 0).sum(-1)
    assert (chosen == router.k).all() == router.fixed
    assert router.fixed or (router.as_softmax(), router.as_log_scores()) == (None, None)


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
    after = shares(*router.choose(logits[:, order], *(t[..., order] for t in tensors)))
    assert close(after, before[:, order])


def test_tokens_do_not_see_each_other_where_the_router_says_so(case):
    router, logits, tensors = case
    together = shares(*router.choose(logits, *tensors))
    alone = [router.choose(logits[t : t + 1], *of_tokens(tensors, slice(t, t + 1))) for t in range(TOKENS)]
    assert close(torch.cat([shares(*chosen) for chosen in alone]), together) == router.causal


def test_tokens_have_no_order(case):
    """Also for routers under which they see each other, and where some of them are alike."""
    router, logits, tensors = case
    order = torch.randperm(2 * TOKENS, generator=torch.Generator().manual_seed(3)) % TOKENS  # each token twice
    twice = torch.arange(2 * TOKENS) % TOKENS
    before = shares(*router.choose(logits[twice], *of_tokens(tensors, twice)))
    assert close(shares(*router.choose(logits[order], *of_tokens(tensors, order))), before[order])


FIRST = 3
"""How many experts are for even tokens; the others are for odd ones."""


def masked(router: Router, logits: torch.Tensor) -> tuple[Router, torch.Tensor]:
    """The router and its logits where the experts stand in two groups."""
    allowed = (torch.arange(EXPERTS) >= FIRST) == (torch.arange(TOKENS) % 2 == 1)[:, None]
    router = dataclasses.replace(router, masked=True) if hasattr(router, "masked") else router
    return router, torch.where(allowed, logits, float("-inf"))


takes_masks = having(lambda router: getattr(router, "groups", 1) == 1)


@takes_masks
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e3])
def test_an_expert_whose_logit_is_minus_infinity_is_never_chosen(case, scale):
    """However small the scores of the others are."""
    router, logits, tensors = case
    router, logits = masked(router, scale * logits)
    ids, weights = router.choose(logits, *tensors)
    chosen = torch.zeros(TOKENS, EXPERTS).scatter(1, ids, 1.0 if router.fixed else (weights != 0).float()) > 0
    assert weights.isfinite().all() and chosen.any() and not (chosen & logits.isneginf()).any()


@takes_masks
def test_routing_among_masked_experts_is_routing_among_the_others_alone(case):
    """Groups of experts, one per modality, are one router."""
    router, logits, tensors = case
    router, among_all = masked(router, logits)
    ids, weights = router.choose(among_all, *tensors)
    for parity, own in enumerate((slice(0, FIRST), slice(FIRST, EXPERTS))):
        rows = slice(parity, None, 2)
        alone = router if router.fixed else dataclasses.replace(router, k=own.stop - own.start)
        ids_alone, weights_alone = alone.choose(logits[rows, own], *(t[..., own] for t in of_tokens(tensors, rows)))
        assert close(shares(ids[rows], weights[rows]), shares(ids_alone + own.start, weights_alone))
        assert not router.fixed or torch.equal(ids[rows], ids_alone + own.start)


@takes_masks
def test_the_fused_forms_are_the_router_on_masked_logits(case):
    router, logits, tensors = case
    router, logits = masked(router, logits)
    expected = shares(*router.choose(logits, *tensors))
    if (form := router.as_log_scores()) is not None:
        assert close(torch.softmax(form.function(logits, *tensors), -1) * form.scale, expected)
    elif (softmax := router.as_softmax()) is not None:
        values, ids = torch.topk(logits, router.k, -1)
        weights = torch.softmax(values, -1) if softmax.over_chosen else torch.softmax(logits, -1).gather(-1, ids)
        assert close(shares(ids, weights * softmax.scale), expected)


def test_a_mask_over_groups_of_its_own_is_refused():
    with pytest.raises(Unsupported, match="masked"):
        SigmoidTopK(2, groups=4, groups_kept=2, masked=True)


def test_any_number_of_experts_is_among_all_of_them():
    with pytest.raises(MocompError, match="k=4 experts, the logits are of 8"):
        ExpertChoice(4).choose(torch.zeros(TOKENS, EXPERTS))


def test_traces_with_any_number_of_tokens(case):
    """Both ways in which it is traced: inlined into a program, and with a program as torch.export makes it."""
    router, logits, tensors = case
    inlined = make_fx(router.choose, tracing_mode="symbolic")(logits, *tensors)
    own = {f"tensor{i}": tensor for i, tensor in enumerate(tensors) if tensor.ndim == 1}
    given = {f"given{i}": tensor for i, tensor in enumerate(tensors) if tensor.ndim == 2}

    def forward(m: Formula, x: torch.Tensor, *more: torch.Tensor) -> Any:
        return router.choose(x, *m.parameters(), *more)

    shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
    exported = trace(Formula(forward, **shapes), TOKENS, EXPERTS, **given)
    exported.tensors = own
    for tokens in (2, TOKENS - 1):
        fewer = of_tokens(tensors, slice(tokens))
        expected = router.choose(logits[:tokens], *fewer)
        assert all(torch.equal(a, b) for a, b in zip(inlined(logits[:tokens], *fewer), expected, strict=True))
        exported.inputs = {"x": logits[:tokens], **{name: tensor[:tokens] for name, tensor in given.items()}}
        assert all(torch.equal(a, b) for a, b in zip(exported.run(), expected, strict=True))


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
