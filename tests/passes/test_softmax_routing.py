"""Every router, and ids and weights that came from nowhere known, through an operator that knows only softmax top-k."""

import pytest
import torch

from mocomp.ir import ops  # noqa: F401  (registers mocomp::route)
from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.ir.specs import parse, spell
from mocomp.passes.clean import Clean
from mocomp.passes.softmax_routing import SoftmaxRouting
from mocomp.routers.sigmoid_topk import SigmoidTopK
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.routers.sparse_mixer import SparseMixer
from mocomp.routers.topk_softmax import TopKSoftmax
from mocomp.routers.topk_uniform import TopKUniform
from tests.programs import EXPERTS, TOKENS, mixture, op_names, rewrite

STEPS = (Clean(), SoftmaxRouting())
ROUTERS = {
    "softmax top-k, divided": (SoftmaxTopK(3, normalize=True, scale=2.5), ["mixture"]),
    "top-k softmax": (TopKSoftmax(3), ["mixture"]),
    "softmax top-k, not divided": (SoftmaxTopK(3, scale=2.5), ["_softmax", "topk", "getitem", "sum", "mixture", "mul"]),
    "sigmoid": (SigmoidTopK(3, scale=2.5), None),
    "sigmoid, grouped": (SigmoidTopK(3, groups=4, groups_kept=2), None),
    "sigmoid, not divided": (SigmoidTopK(3, normalize=False), None),
    "sigmoid, masked": (SigmoidTopK(3, masked=True), None),
    "sparse mixer": (SparseMixer(3), None),
    "uniform": (TopKUniform(3, scale=0.5), ["topk", "getitem", "full_like", "scatter", "mixture"]),
}
BIASED = (SigmoidTopK,)


def routing(router):
    def route(m, logits):
        tensors = [m.bias] if isinstance(router, BIASED) else []
        ids, weights = torch.ops.mocomp.route(logits, tensors, spell(router))
        return ids, weights

    return mixture(route, **({"bias": (EXPERTS,)} if isinstance(router, BIASED) else {}))


@pytest.mark.parametrize("name", ROUTERS)
def test_a_router_becomes_a_mixture_with_the_same_numbers(name):
    """`rewrite` compares them."""
    router, expected = ROUTERS[name]
    program, receipt = rewrite(routing(router), *STEPS)
    (node,) = calls(program, MOCOMP.mixture.default)
    assert receipt.changed == 1 and calls(program, MOCOMP.experts.default) == []
    inner = parse("mocomp.routers", "Router", node.args[7])
    assert isinstance(inner, TopKSoftmax) and inner.k == router.k
    assert expected is None or op_names(program) == ["linear", *expected]


def test_the_scale_stays_with_the_router_where_it_can():
    program, _ = rewrite(routing(SoftmaxTopK(2, normalize=True, scale=2.5)), *STEPS)
    (node,) = calls(program, MOCOMP.mixture.default)
    assert parse("mocomp.routers", "Router", node.args[7]).scale == 2.5


def test_uniform_weights_take_the_best_of_experts_that_tie():
    """Of the log scores, which are alike, the operator may take any; none of them may be of an expert not chosen."""
    logits = torch.tensor([[1.0, 1.0, 5.0, 1.0]])
    scores = TopKUniform(2).as_log_scores().function(logits)
    assert (scores == 0).sum() == 2 and scores[0, 2] == 0


def given(m, logits, ids, weights):
    return ids, weights


def handed(k: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.rand(TOKENS, EXPERTS, generator=generator).topk(k).indices
    return {"ids": ids, "weights": 4 * torch.rand(TOKENS, k, generator=generator)}


@pytest.mark.parametrize("k", [1, 2, EXPERTS])
def test_any_ids_and_weights_go_through(k):
    program, receipt = rewrite(mixture(given), *STEPS, **handed(k))
    assert receipt.changed == 1 and len(calls(program, MOCOMP.mixture.default)) == 1


def test_a_weight_of_zero_is_an_expert_that_adds_nothing():
    more = handed(3)
    more["weights"][:, 1] = 0.0
    rewrite(mixture(given), *STEPS, **more)


def test_an_expert_chosen_twice_counts_twice():
    """A router that hashes may; scattering must add and not overwrite."""
    more = handed(3)
    more["ids"][:, 2] = more["ids"][:, 0]
    rewrite(mixture(given), *STEPS, **more)


def test_each_layer_has_its_own():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([routing(SoftmaxTopK(2)), routing(SigmoidTopK(2))])

        def forward(self, x):
            return self.layers[1](self.layers[0](x) + x)

    program, receipt = rewrite(Model(), *STEPS)
    assert receipt.changed == 2 and len(calls(program, MOCOMP.mixture.default)) == 2
