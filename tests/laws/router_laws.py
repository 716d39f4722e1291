"""What holds of every router, as functions of a `Case`; `test_routers` asks each of every example that a kind gives.

Dimension letters: T tokens, B sequences of S tokens, E experts, K chosen, C logits of a token.
"""

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from mocomp.ir import ops  # noqa: F401  (registers mocomp::route)
from mocomp.ir.specs import parse, spell
from mocomp.routers import AnyNumber, Example, Router

SEQUENCES, LENGTH = 3, 11
TOKENS = SEQUENCES * LENGTH
FIRST = 3
"""How many experts are for every other token (or sequence); the rest are for the others."""
Given = list[Tensor]


@dataclass(frozen=True)
class Case:
    """An example with logits on which no two scores are alike."""

    example: Example

    @property
    def router(self) -> Router:
        return self.example.router

    @property
    def experts(self) -> int:
        return self.example.experts

    @property
    def maskable(self) -> bool:
        """Whether its experts may stand in groups that are told by masks."""
        groups = getattr(self.router, "groups", 1)
        return self.of_experts and self.experts > FIRST and groups == 1 and not self.router.ordered

    @property
    def of_experts(self) -> bool:
        """Whether each logit is one expert's."""
        return type(self.router).columns is Router.columns

    def logits(self, tokens: tuple[int, int] = (SEQUENCES, LENGTH)) -> Tensor:
        """[T, C], or [B, S, C]; fewer tokens are the first ones."""
        return self._cut(3 * _random(0, SEQUENCES, LENGTH, self.router.columns(self.experts)), tokens)

    def tensors(self, tokens: tuple[int, int] = (SEQUENCES, LENGTH)) -> Given:
        """The router's own, those with a row for each token as the logits are."""
        found = []
        for i, (rows, *rest) in enumerate(self.example.tensors):
            drawn = 0.3 * _random(i + 1, *((SEQUENCES, LENGTH) if rows is None else (rows,)), *rest)  # type: ignore[arg-type]
            found.append(self._cut(drawn, tokens) if rows is None else drawn)
        return found

    def _cut(self, values: Tensor, tokens: tuple[int, int]) -> Tensor:
        values = values[: tokens[0], : tokens[1]]
        return values if self.router.per_sequence else values.flatten(0, 1)

    def rows(self, pick: Callable[[Tensor], Tensor]) -> Given:
        """The tensors where `pick` has been done to those with a row for each token, and to no other."""
        own = zip(self.tensors(), self.example.tensors, strict=True)
        return [pick(tensor) if shape[0] is None else tensor for tensor, shape in own]

    def choose(self, logits: Tensor, tensors: Given) -> Tensor:
        """Weights [T, E], with 0 for experts that were not chosen."""
        return shares(*self.router.choose(logits, *tensors), self.experts)

    def choose_by(self, router: Router, logits: Tensor) -> Tensor:
        """The same by another router, with the case's own tensors."""
        return shares(*router.choose(logits, *self.tensors()), self.experts)


def _random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shares(ids: Tensor, weights: Tensor, experts: int) -> Tensor:
    """ids, weights [T, K] -> [T, E], so that the order of the K does not matter."""
    return weights.new_zeros(len(ids), experts).scatter_add(1, ids, weights)


def close(a: Tensor, b: Tensor) -> bool:
    """Up to the rounding of float32."""
    return torch.allclose(a, b, rtol=1e-5, atol=1e-7)


def gives_ids_of_experts(case: Case) -> None:
    """K of them, in range, and no two of one token alike among those that weigh anything."""
    ids, weights = case.router.choose(case.logits(), *case.tensors())
    assert ids.shape == weights.shape == (TOKENS, case.router.k) and ids.dtype == torch.int64
    assert ids.min() >= 0 and ids.max() < case.experts
    for chosen, weight in zip(ids.tolist(), weights.tolist(), strict=True):
        counted = [e for e, w in zip(chosen, weight, strict=True) if w or case.router.fixed]
        assert len(set(counted)) == len(counted)


def gives_weights_that_are_finite_and_not_negative(case: Case) -> None:
    """Also where all logits tie, where they are huge, as those of untrained routers are, and for one token."""
    for scale in (0.0, 1.0, 1e3):
        _, weights = case.router.choose(scale * case.logits(), *case.tensors())
        assert weights.dtype == torch.float32 and weights.isfinite().all() and (weights >= 0).all()
    ids, weights = case.router.choose(case.logits((1, 1)), *case.tensors((1, 1)))
    assert ids.shape == weights.shape == (1, case.router.k) and weights.isfinite().all()


def says_whether_every_token_has_k_experts(case: Case) -> None:
    """One that says no shows it somewhere, if only where an expert is closed to a token."""
    found = (case.router.choose(case.logits(), *case.tensors())[1] > 0).sum(-1)
    if case.router.fixed:
        assert (found == case.router.k).all()
        return
    fewer = [found]
    if case.maskable:
        router, logits = masked(case)
        fewer.append((router.choose(logits, *case.tensors())[1] > 0).sum(-1))
    assert any((count < case.router.k).any() for count in fewer)
    assert (case.router.as_softmax(), case.router.as_log_scores()) == (None, None)


def gives_weights_of_the_declared_sum(case: Case) -> None:
    """Where a form for fused operators declares one."""
    total = case.router.choose(case.logits(), *case.tensors())[1].sum(-1)
    softmax, log_scores = case.router.as_softmax(), case.router.as_log_scores()
    if softmax is not None and softmax.over_chosen:
        assert close(total, torch.full_like(total, softmax.scale))
    elif softmax is not None:
        assert (total <= softmax.scale + 1e-6).all() and (total < softmax.scale - 1e-3).any()
    elif log_scores is not None:
        assert close(total, torch.full_like(total, log_scores.scale))


def knows_experts_by_no_name(case: Case) -> None:
    """Experts in another order are chosen in that order; where they stand in groups, groups move as a whole."""
    if not case.of_experts:
        return
    groups = getattr(case.router, "groups", 1)
    moved = torch.randperm(groups, generator=torch.Generator().manual_seed(2))
    order = torch.arange(case.experts).reshape(groups, -1)[moved].flatten()
    if groups == 1:
        order = torch.randperm(case.experts, generator=torch.Generator().manual_seed(2))
    tensors = [t[..., order if t.shape[-1] == case.experts else moved] for t in case.tensors()]
    before = case.choose(case.logits(), case.tensors())
    assert close(case.choose(case.logits()[..., order], tensors), before[:, order])


def keeps_tokens_apart_as_it_says(case: Case) -> None:
    """Alone, a token has what it has among others, exactly where the router is causal; and so have sequences."""
    together = case.choose(case.logits(), case.tensors())
    if case.router.per_sequence:
        parts = [(case.logits()[b : b + 1], case.rows(lambda t, b=b: t[b : b + 1])) for b in range(SEQUENCES)]
        assert close(torch.cat([case.choose(*part) for part in parts]), together)
    flat = case.logits().reshape(TOKENS, -1)
    alone = []
    for t in range(TOKENS):
        one = flat[t : t + 1]
        given = case.rows(lambda rows, t=t: rows.reshape(TOKENS, -1)[t : t + 1])
        if case.router.per_sequence:
            one, given = one[None], [g[None] if s[0] is None else g for g, s in zip(given, case.example.tensors, strict=True)]
        alone.append(case.choose(one, given))
    assert close(torch.cat(alone), together) == case.router.causal


def knows_tokens_by_no_order(case: Case) -> None:
    """Unless it says so. Also where tokens see each other, and where some of them are alike: each is there twice."""
    count = LENGTH if case.router.per_sequence else TOKENS
    order = torch.randperm(2 * count, generator=torch.Generator().manual_seed(3)) % count
    twice = torch.arange(2 * count) % count
    axis = 1 if case.router.per_sequence else 0

    def chosen(rows: Tensor) -> Tensor:
        found = case.choose(case.logits().index_select(axis, rows), case.rows(lambda t: t.index_select(axis, rows)))
        return found.reshape(-1, 2 * count, case.experts)

    before = chosen(twice)
    assert case.router.ordered or close(chosen(order), before[:, order])


def masked(case: Case) -> tuple[Router, Tensor]:
    """The router and its logits where the experts stand in two groups."""
    router = case.router
    odd = torch.arange(SEQUENCES if router.per_sequence else TOKENS) % 2 == 1
    allowed = (torch.arange(case.experts) >= FIRST) == (odd[:, None, None] if router.per_sequence else odd[:, None])
    router = dataclasses.replace(router, masked=True) if hasattr(router, "masked") else router
    return router, torch.where(allowed, case.logits(), float("-inf"))


def never_takes_a_masked_expert(case: Case) -> None:
    """However small the scores of the others are."""
    if not case.maskable:
        return
    router, logits = masked(case)
    for scale in (1e-3, 1.0, 1e3):
        ids, weights = router.choose(scale * logits, *case.tensors())
        chosen = torch.zeros(TOKENS, case.experts).scatter_add(1, ids, 1.0 * (router.fixed | (weights != 0))) > 0
        assert weights.isfinite().all() and chosen.any()
        assert not (chosen & logits.reshape(TOKENS, -1).isneginf()).any()


def routes_groups_of_experts_apart(case: Case) -> None:
    """Routing among masked experts is routing among the others alone: groups, one per modality, are one router."""
    if not case.maskable:
        return
    router, among_all = masked(case)
    count = SEQUENCES if router.per_sequence else TOKENS
    together = case.choose_by(router, among_all)
    for parity, own in enumerate((slice(0, FIRST), slice(FIRST, case.experts))):
        rows = slice(parity, None, 2)
        alone = dataclasses.replace(router, k=own.stop - own.start) if isinstance(router, AnyNumber) else router
        given = [t[..., own] for t in case.rows(lambda t, rows=rows: t[rows])]
        ids, weights = alone.choose(case.logits()[rows][..., own], *given)
        mine = together.reshape(count, -1, case.experts)[rows].reshape(-1, case.experts)
        assert close(mine, shares(ids + own.start, weights, case.experts))


def has_a_softmax_form_that_is_the_router(case: Case) -> None:
    """What a fused operator would do of it, on plain and on masked logits."""
    for router, logits in plain_and_masked(case):
        form = router.as_softmax()
        if form is None:
            return
        values, ids = torch.topk(logits, router.k, -1)
        weights = torch.softmax(values, -1) if form.over_chosen else torch.softmax(logits, -1).gather(-1, ids)
        assert close(shares(ids, weights * form.scale, case.experts), case.choose_by(router, logits))


def has_log_scores_that_are_the_router(case: Case) -> None:
    """Their softmax, on plain and on masked logits; one is -inf for each expert that was not chosen."""
    for router, logits in plain_and_masked(case):
        form = router.as_log_scores()
        if form is None:
            return
        scores = form.function(logits, *case.tensors())
        assert scores.shape == logits.shape and ((scores > float("-inf")).sum(-1) == router.k).all()
        assert close(torch.softmax(scores, -1) * form.scale, case.choose_by(router, logits))


def plain_and_masked(case: Case) -> Iterator[tuple[Router, Tensor]]:
    """The router with its logits as they are, and where its experts may stand in groups, so."""
    yield case.router, case.logits()
    if case.maskable:
        yield masked(case)


def takes_in_a_factor(case: Case) -> None:
    """Where it can: the weights are so many times larger."""
    scaled = case.router.scaled(2.5)
    if scaled is None:
        return
    (ids, weights), (same, larger) = (r.choose(case.logits(), *case.tensors()) for r in (case.router, scaled))
    assert torch.equal(ids, same) and close(larger, 2.5 * weights)
    assert scaled.scaled(0.4) == case.router


def is_the_op_that_it_is_spelled_as(case: Case) -> None:
    """mocomp::route with the router as text: the same numbers, and a shape function that tells the truth."""
    spec = spell(case.router)
    assert parse("mocomp.routers", "Router", spec) == case.router
    arguments = (case.logits(), case.tensors(), spec)
    results = torch.ops.mocomp.route(*arguments)
    expected = case.router.choose(case.logits(), *case.tensors())
    assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
    torch.library.opcheck(torch.ops.mocomp.route.default, arguments, test_utils=("test_schema", "test_faketensor"))


def traces_for_any_number_of_tokens(case: Case) -> None:
    """Traced once, it is itself for other numbers of tokens."""
    traced = make_fx(case.router.choose, tracing_mode="symbolic")(case.logits(), *case.tensors())
    for tokens in ((2, 3), (SEQUENCES, LENGTH - 1)):
        logits, tensors = case.logits(tokens), case.tensors(tokens)
        expected = case.router.choose(logits, *tensors)
        assert all(torch.equal(a, b) for a, b in zip(traced(logits, *tensors), expected, strict=True))


LAWS: tuple[Callable[[Case], None], ...] = (
    gives_ids_of_experts,
    gives_weights_that_are_finite_and_not_negative,
    says_whether_every_token_has_k_experts,
    gives_weights_of_the_declared_sum,
    knows_experts_by_no_name,
    keeps_tokens_apart_as_it_says,
    knows_tokens_by_no_order,
    never_takes_a_masked_expert,
    routes_groups_of_experts_apart,
    has_a_softmax_form_that_is_the_router,
    has_log_scores_that_are_the_router,
    takes_in_a_factor,
    is_the_op_that_it_is_spelled_as,
    traces_for_any_number_of_tokens,
)
