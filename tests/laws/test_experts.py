"""What holds of every kind of expert; adding a file to mocomp/experts adds its tests."""

import functools
from itertools import combinations

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from mocomp.experts import Expert
from mocomp.ir import ops  # noqa: F401  (registers mocomp::experts)
from mocomp.ir.specs import parse, spell
from mocomp.registry import discover

TOKENS, HIDDEN, WIDTH, EXPERTS, CHOSEN = 11, 6, 5, 4, 3
KINDS = discover("mocomp.experts", "Expert")


@functools.cache
def samples() -> dict[str, Expert]:
    """Every expert that a module with a slope and a limit suggests, as its own `guesses` say."""
    guesses = [guess for kind in KINDS.values() for guess in kind.guesses({"alpha": 1.702, "limit": 1.5})]
    return {spell(expert): expert for expert in guesses}


@pytest.fixture(params=samples(), ids=lambda name: name)
def expert(request) -> Expert:
    return samples()[request.param]


def bank(expert: Expert, bias: bool = True) -> dict[str, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    rows = 2 * WIDTH if expert.gated else WIDTH
    shapes = {
        "w_in": (EXPERTS, rows, HIDDEN),
        "b_in": (EXPERTS, rows),
        "w_out": (EXPERTS, HIDDEN, WIDTH),
        "b_out": (EXPERTS, HIDDEN),
    }
    made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return made if bias else made | {"b_in": None, "b_out": None}


def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x [T, H], ids and weights [T, K]; one token chooses an expert twice, as a router that samples may."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(TOKENS, HIDDEN, generator=generator, dtype=torch.float64)
    ids = torch.rand(TOKENS, EXPERTS, generator=generator).topk(CHOSEN, -1).indices
    ids[0, 1] = ids[0, 0]
    return x, ids, torch.rand(TOKENS, CHOSEN, generator=generator, dtype=torch.float64)


def test_every_kind_has_a_sample():
    assert {type(expert) for expert in samples().values()} == set(KINDS.values())


@pytest.mark.parametrize("bias", [True, False])
def test_a_mixture_is_the_sum_over_the_chosen(expert, bias):
    """The definition, token by token and expert by expert."""
    b = bank(expert, bias)
    x, ids, weights = tokens()
    expected = torch.zeros(TOKENS, HIDDEN, dtype=torch.float64)
    for t in range(TOKENS):
        for e, weight in zip(ids[t].tolist(), weights[t], strict=True):
            h = b["w_in"][e] @ x[t] + (b["b_in"][e] if bias else 0)
            expected[t] += weight * (b["w_out"][e] @ expert.inner(h) + (b["b_out"][e] if bias else 0))
    assert torch.allclose(expert.mixture(x, ids, weights, **b), expected, rtol=1e-12, atol=1e-12)


def test_inner_halves_the_width_or_keeps_it(expert):
    h = torch.randn(2, 3, 2 * WIDTH if expert.gated else WIDTH)
    assert expert.inner(h).shape == (2, 3, WIDTH)


def test_inner_takes_any_axis(expert):
    """Tokens may be columns, as in the bodies of ONNX."""
    h = torch.randn(3, 2 * WIDTH if expert.gated else WIDTH, 4, generator=torch.Generator().manual_seed(2))
    # the ends of vectors may be rounded otherwise than their middle
    torch.testing.assert_close(expert.inner(h, 1), expert.inner(h.transpose(1, 2)).transpose(1, 2), rtol=1e-6, atol=1e-6)


def test_inner_is_elementwise(expert):
    """Unit f of the result depends on gate f and up f alone, so units may be stored in any order."""
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(0))
    h = 3 * torch.randn(20, 2 * WIDTH if expert.gated else WIDTH, generator=torch.Generator().manual_seed(1))
    moved = h.reshape(20, -1, WIDTH)[..., order].reshape(h.shape)
    assert torch.allclose(expert.inner(moved), expert.inner(h)[:, order])


def test_a_mixture_is_linear_in_its_weights(expert):
    b, (x, ids, weights) = bank(expert), tokens()
    other = torch.rand(weights.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    together = expert.mixture(x, ids, 2 * weights + other, **b)
    apart = 2 * expert.mixture(x, ids, weights, **b) + expert.mixture(x, ids, other, **b)
    assert torch.allclose(together, apart, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False])
def test_what_no_token_chose_does_not_matter(expert, bias):
    """Not even if it is NaN, as weights that no training reached may be; weight 0 is not chosen."""
    b, (x, ids, weights) = bank(expert, bias), tokens()
    weights[ids == 0] = 0.0
    ids[ids == 1] = 2
    expected = expert.mixture(x, ids, weights, **b)
    for tensor in b.values():
        if tensor is not None:
            tensor[:2] = float("nan")
    assert expected.isfinite().all() and torch.equal(expert.mixture(x, ids, weights, **b), expected)


def test_experts_have_no_names(expert):
    b, (x, ids, weights) = bank(expert), tokens()
    order = torch.randperm(EXPERTS, generator=torch.Generator().manual_seed(0))
    moved = {name: tensor[order] for name, tensor in b.items()}
    assert torch.allclose(expert.mixture(x, order.argsort()[ids], weights, **moved), expert.mixture(x, ids, weights, **b))


@pytest.mark.parametrize("bias", [True, False])
def test_the_op_is_the_mixture(expert, bias):
    """mocomp::experts with the expert as text: the same numbers, and a shape function that tells the truth."""
    assert parse("mocomp.experts", "Expert", spell(expert)) == expert
    arguments = (*tokens(), *bank(expert, bias).values())
    assert torch.equal(torch.ops.mocomp.experts(*arguments, spell(expert)), expert.mixture(*arguments))
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.mocomp.experts.default, (*arguments, spell(expert)), test_utils=checks)


def test_traces_with_any_number_of_tokens(expert):
    b, chosen = list(bank(expert).values()), tokens()

    def mixture(*given):  # make_fx cannot count the arguments of a method
        return expert.mixture(*given)

    traced = make_fx(mixture, tracing_mode="symbolic")(*chosen, *b)
    fewer = [tensor[:3] for tensor in chosen]
    assert torch.equal(traced(*fewer, *b), expert.mixture(*fewer, *b))


def test_no_two_kinds_are_the_same():
    """Two names for one thing would make the name in a report a matter of chance."""
    h = 3 * torch.randn(50, 2 * WIDTH, generator=torch.Generator().manual_seed(0))
    results = {name: expert.inner(h).flatten() for name, expert in samples().items()}
    for a, b in combinations(results, 2):
        assert results[a].shape != results[b].shape or not torch.allclose(results[a], results[b]), (a, b)
