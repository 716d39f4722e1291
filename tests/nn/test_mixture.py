"""The mixture that trains is the mixture that the graph's ops compute, and its gradients go where its tokens went."""

from dataclasses import replace

import pytest
import torch

from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.fill.routing import router
from mocomp.ir import ops  # noqa: F401  (registers mocomp::experts and mocomp::route)
from mocomp.ir.specs import spell
from mocomp.nn.mixture import Mixture, TokenModality
from mocomp.plans.modality import Modality
from mocomp.plans.plan import MixturePlan
from mocomp.routers.auxiliary import Auxiliary
from mocomp.routers.softmax_topk import SoftmaxTopK

HIDDEN, WIDTH, TOKENS = 8, 6, 24
GROUPS = (("text", 3), ("image", 2))
MODALITIES = torch.arange(TOKENS) % 2
PLAN = MixturePlan(
    "mlp", "dense", HIDDEN, WIDTH, GROUPS, (("text",), ("image",)), spell(SoftmaxTopK(2, True)), spell(GLU("gelu"))
)
EVERYTHING = {"shared": 4, "in_bias": True, "out_bias": True, "router_bias": True}
KINDS = [
    "softmax_topk",
    "softmax_topk:normalize=false,scale=2",
    "topk_softmax",
    "topk_uniform",
    "sigmoid_topk",
    "expert_choice",
]


def mixture(plan: MixturePlan, ids: torch.Tensor = MODALITIES) -> Mixture:
    """With random weights, each large enough that its loss would be seen."""
    made = Mixture(plan, TokenModality(ids=ids))
    generator = torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return made.eval()


def tokens(*shape: int) -> torch.Tensor:
    return torch.randn(*(shape or (TOKENS, HIDDEN)), generator=torch.Generator().manual_seed(1))


def by_the_ops(made: Mixture, x: torch.Tensor) -> torch.Tensor:
    """What the graph that `insert_experts` makes computes, written out: x [T, H] -> y [T, H]."""
    plan, w = made.plan, {name: value for name, value in made.named_parameters()}
    logits = torch.nn.functional.linear(x, w["router.weight"], w.get("router.bias"))
    if plan.scoring == "neurons":
        logits = plan.kind.inner(logits).abs()
    if (allowed := plan.allowed()) is not None:
        logits = torch.where(allowed[made.modality.ids], logits, float("-inf"))
    tensors, kind = [w["router.correction"]] if plan.correction else [], plan.router
    if plan.auxiliary and not made.training:
        tensors = [torch.nn.functional.silu(x @ w["router.aux_in"].T) @ w["router.aux_out"].T]
        kind = plan.inference
    ids, weights = torch.ops.mocomp.route(logits, tensors, kind)
    bank = [w.get(f"experts.{name}") for name in ("w_in", "b_in", "w_out", "b_out")]
    y = torch.ops.mocomp.experts(x, ids, weights, *bank, plan.expert)
    if plan.shared:
        h = plan.kind.inner(torch.nn.functional.linear(x, w["shared.w_in"], w.get("shared.b_in")))
        y = y + torch.nn.functional.linear(h, w["shared.w_out"], w.get("shared.b_out"))
    return y


def of_kind(kind: str, **fields) -> MixturePlan:
    return replace(PLAN, router=spell(router(kind, 2, 5, masked=True)), **fields)


PLANS = {
    **{kind: of_kind(kind) for kind in KINDS},
    "a bias that chooses": of_kind("softmax_bias_topk", correction=True),
    "sigmoid, with a bias that chooses": of_kind("sigmoid_topk", correction=True),
    "everything": replace(PLAN, **EVERYTHING),
    "everything, plain experts": replace(PLAN, expert=spell(FFN("relu2")), **EVERYTHING),
    "scored by neurons": replace(PLAN, scoring="neurons", router_bias=True),
    "foretold": of_kind("expert_choice:score=sigmoid", auxiliary=3, inference=spell(Auxiliary(5))),
    "images reach text": replace(PLAN, reach=(("text",), ("text", "image"))),
    "one group": replace(PLAN, groups=(("all", 5),), reach=(("all",),)),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_is_what_the_ops_compute(name, training):
    made = mixture(PLANS[name]).train(training)
    assert {n: tuple(p.shape) for n, p in made.state_dict().items()} == PLANS[name].shapes()
    x = tokens()
    with torch.no_grad():
        assert torch.allclose(made(x), by_the_ops(made, x), rtol=1e-5, atol=1e-5)


def test_takes_any_shape_and_the_choice_of_whom_it_replaces():
    made = mixture(PLAN)
    flat = made(tokens())
    assert torch.allclose(made(tokens().reshape(4, 6, HIDDEN)), flat.reshape(4, 6, HIDDEN))
    assert torch.equal(made(tokens(), torch.zeros(TOKENS, 2), torch.ones(TOKENS, 2)), flat)


def test_tokens_go_to_experts_of_their_own_modality():
    made = mixture(PLAN)
    ids, weights = made.route(tokens(), made._reachable(tokens()))
    assert (ids[MODALITIES == 0] < 3).all() and (ids[MODALITIES == 1] >= 3).all() and (weights > 0).all()
    before = made(tokens())
    for parameter in (made.router.weight, made.experts.w_in, made.experts.w_out):
        parameter.data[3:] = float("nan")  # those of images
    after = made(tokens())
    assert torch.equal(after[MODALITIES == 0], before[MODALITIES == 0]) and after[MODALITIES == 1].isnan().any()


def test_images_without_ids_go_by_their_position():
    """A model of images has no token ids; the position in x tells."""
    by_position = Modality(("text", "image"), "position", ((), ((2, 5),)), ("", ""), "text")
    made = Mixture(PLAN, TokenModality(by_position))
    made.load_state_dict(mixture(PLAN).state_dict())
    x = tokens(3, 8, HIDDEN)
    expected = mixture(PLAN, torch.tensor([0, 0, 1, 1, 1, 1, 0, 0]).repeat(3))(x)
    assert torch.equal(made.eval()(x), expected)


@pytest.mark.parametrize("name", [name for name in PLANS if name not in ("topk_uniform", "scored by neurons")])
def test_gradients_reach_what_was_chosen_and_nothing_else(name):
    """And are numbers, though logits of other modalities are -inf."""
    made = mixture(PLANS[name]).train()
    x = tokens().requires_grad_()
    ids, weights = made.route(x, made._reachable(x))
    chosen = set(ids[weights != 0].unique().tolist())
    made(x).square().mean().backward()
    foretelling = ("router.aux_in", "router.aux_out", "router.correction")  # learn of losses of their own
    grads = {n: p.grad for n, p in made.named_parameters() if n not in foretelling}
    assert all(grad is not None and grad.isfinite().all() for grad in (x.grad, *grads.values()))
    for bank in ("w_in", "w_out"):
        reached = {e for e, grad in enumerate(grads[f"experts.{bank}"]) if grad.abs().max() > 0}
        assert reached == chosen
    assert all(grad.abs().max() > 0 for grad in grads.values())
    assert (x.grad.abs().amax(1) > 0).float().mean() > 0.5


def test_an_expert_that_nobody_chose_has_no_gradient():
    made = mixture(replace(PLAN, router=spell(SoftmaxTopK(1)))).train()
    made.router.weight.data[4] = made.router.weight.data[3] * 3  # one of the two of images is never the best ...
    x = tokens() * torch.sign(tokens() @ made.router.weight.data[3])[:, None]
    made(x).sum().backward()
    assert made.experts.w_in.grad[3].abs().max() == 0 < made.experts.w_in.grad[4].abs().max()
    assert made.router.weight.grad[3].abs().max() > 0  # ... though its row takes part in the softmax


def test_logits_are_kept_for_losses():
    made = mixture(PLAN)
    made(tokens())
    assert made.logits.shape == (TOKENS, 5) and (made.logits.isneginf() == ~PLAN.allowed()[MODALITIES]).all()


def test_the_auxiliary_router_learns_to_foretell():
    """From x, which it must not shape: its loss moves its own weights."""
    made = mixture(PLANS["foretold"]).train()
    x = tokens()
    logits = made.router.auxiliary(x)
    chosen = made.route(x, made._reachable(x))[1] > 0
    torch.nn.functional.binary_cross_entropy_with_logits(logits, chosen.float()).backward()
    assert made.router.aux_in.grad.abs().max() > 0 and made.router.aux_out.grad.abs().max() > 0
    assert made.router.weight.grad is None and made.experts.w_in.grad is None


def test_runs_in_bfloat16():
    made = mixture(PLANS["everything"]).bfloat16()
    y = made(tokens().bfloat16())
    assert y.dtype == torch.bfloat16
    expected = mixture(PLANS["everything"])(tokens())
    assert (y.float() - expected).abs().max() <= 0.03 * expected.abs().max()


def test_outside_of_its_model_a_grouped_mixture_says_so():
    made = Mixture(PLAN)
    with pytest.raises(AssertionError, match="outside of its model"):
        made(tokens(1, 3, HIDDEN))
