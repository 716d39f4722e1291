"""However a family spells its routing, one op says it; what no router of ours does stays as it is, with the reason."""

import pytest
import torch
from torch.nn.functional import one_hot

from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.ir.specs import parse
from mocomp.passes.clean import Clean
from mocomp.passes.fuse_routing import FuseRouting
from mocomp.routers.sigmoid_topk import SigmoidTopK
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.routers.sparse_mixer import SparseMixer
from mocomp.routers.topk_softmax import TopKSoftmax
from mocomp.routers.topk_uniform import TopKUniform
from tests.programs import EXPERTS, mixture, op_names, rewrite

STEPS = (Clean(), FuseRouting())


def softmax_topk_div(m, logits):
    weights, ids = torch.topk(torch.softmax(logits, -1), 2)
    return ids, weights / weights.sum(-1, keepdim=True)


def softmax_over_a_cast(m, logits):
    """In float32 whatever the model runs in, divided in place (Mixtral)."""
    weights, ids = torch.topk(torch.nn.functional.softmax(logits, 1, torch.float), 2, -1)
    weights /= weights.sum(-1, keepdim=True)
    return ids, weights.to(logits.dtype)


def softmax_topk(m, logits):
    weights, ids = logits.softmax(-1).topk(3)
    return ids, weights


def topk_softmax(m, logits):
    values, ids = torch.topk(logits, 2)
    return ids, torch.softmax(values, -1, dtype=torch.float32)


def topk_softmax_of_a_mask(m, logits):
    """Everything but the chosen is masked before the softmax."""
    ids = logits.topk(2)[1]
    chosen = one_hot(ids, EXPERTS).sum(1).bool()
    return ids, logits.masked_fill(~chosen, float("-inf")).softmax(-1).gather(1, ids)


def switch(m, logits):
    """One expert, by its share of all."""
    weights, ids = logits.softmax(-1).max(-1, keepdim=True)
    return ids, weights


def deepseek(m, logits):
    """Sigmoid with a bias that only chooses, groups, a mask that is filled in place, a factor (DeepSeek-V3)."""
    scores = logits.sigmoid()
    choice = scores + m.bias
    groups = choice.view(-1, 4, EXPERTS // 4).topk(2, -1)[0].sum(-1)
    mask = torch.zeros_like(groups)
    mask.scatter_(1, groups.topk(2, -1, sorted=False)[1], 1)
    mask = mask.unsqueeze(-1).expand(-1, 4, EXPERTS // 4).reshape(-1, EXPERTS)
    ids = choice.masked_fill(~mask.bool(), float("-inf")).topk(2, -1, sorted=False)[1]
    weights = scores.gather(1, ids)
    weights /= weights.sum(-1, keepdim=True) + 1e-20
    return ids, weights * 2.5


def sigmoid_of_the_chosen(m, logits):
    """The bias is a weight of its own shape; only the chosen go through the sigmoid."""
    ids = (torch.sigmoid(logits) + m.bias[None]).topk(2).indices
    return ids, torch.sigmoid(logits.gather(1, ids))


def phi(m, logits):
    """SparseMixer-v2 at inference (Phi-3.5-MoE), jitter 0.01."""
    ids, weights, masked = [], [], logits
    for _ in range(2):
        largest, best = masked.max(-1, keepdim=True)
        factor = logits.abs().clamp(min=largest)
        near = masked.masked_fill((largest - logits) / factor > 0.02, float("-inf"))
        weights.append(near.softmax(-1).gather(-1, best))
        ids.append(best)
        masked = torch.scatter(logits, -1, best, float("-inf"))
    return torch.cat(ids, -1), torch.cat(weights, -1)


def carved(m, logits):
    """Blocks of a feed-forward that was cut up, added as they are (CMoE)."""
    ids = logits.topk(3)[1]
    return ids, torch.ones_like(ids, dtype=logits.dtype)


KNOWN = {
    softmax_topk_div: SoftmaxTopK(2, normalize=True),
    softmax_over_a_cast: SoftmaxTopK(2, normalize=True),
    softmax_topk: SoftmaxTopK(3),
    topk_softmax: TopKSoftmax(2),
    topk_softmax_of_a_mask: TopKSoftmax(2),
    switch: SoftmaxTopK(1),
    deepseek: SigmoidTopK(2, groups=4, groups_kept=2),
    sigmoid_of_the_chosen: SigmoidTopK(2, normalize=False),
    phi: SparseMixer(2),
    carved: TopKUniform(3),
}
BIASED = {deepseek: (EXPERTS,), sigmoid_of_the_chosen: (EXPERTS,)}


def model(route, **more):
    return mixture(route, **({"bias": BIASED[route]} if route in BIASED else {}), **more)


@pytest.mark.parametrize("route", KNOWN, ids=lambda route: route.__name__)
def test_a_spelling_is_recognised(route):
    program, receipt = rewrite(model(route), *STEPS)
    (node,) = calls(program, MOCOMP.route.default)
    assert parse("mocomp.routers", "Router", node.args[2]) == KNOWN[route]
    assert receipt.changed == 1 and receipt.skipped == []
    factor = ["mul"] if route is deepseek else []
    assert op_names(program) == ["linear", "route", "getitem", "getitem", *factor, "experts"]


def test_a_factor_stays_for_the_pass_that_folds_it():
    program, _ = rewrite(model(deepseek), *STEPS)
    (factor,) = calls(program, torch.ops.aten.mul.Tensor)
    assert factor.args[1] == 2.5


def test_the_order_of_the_chosen_does_not_matter():
    def backwards(m, logits):
        ids, weights = softmax_topk_div(m, logits)
        return ids.flip(-1), weights.flip(-1)

    assert rewrite(mixture(backwards), *STEPS)[1].changed == 1


def scaled_by_the_token(m, logits):
    ids, weights = softmax_topk_div(m, logits)
    return ids, weights * logits.abs().sum(-1, keepdim=True)


def tilted(m, logits):
    """Almost the router of Mixtral."""
    ids, weights = softmax_topk_div(m, logits)
    return ids, weights + 1e-3


@pytest.mark.parametrize("route", [scaled_by_the_token, tilted], ids=lambda route: route.__name__)
def test_what_no_router_does_is_left_with_the_nearest_miss(route):
    program, receipt = rewrite(mixture(route), *STEPS)
    assert receipt.changed == 0 and calls(program, MOCOMP.route.default) == []
    (reason,) = receipt.skipped
    assert "no known router does this; the nearest" in reason


def test_a_miss_tells_how_far_off_the_nearest_is():
    (reason,) = rewrite(mixture(tilted), *STEPS)[1].skipped
    assert '"kind": "s' in reason or '"kind": "t' in reason
    assert float(reason.rsplit(" ", 1)[1]) == pytest.approx(1e-3, rel=0.5)


def scaled_per_expert(m, logits):
    """A factor that is learned."""
    ids, weights = softmax_topk_div(m, logits)
    return ids, weights * m.factor[ids]


def sines(m, logits):
    weights, ids = logits.sin().square().topk(2)
    return ids, weights


def test_what_looks_like_no_router_is_left_with_its_ops():
    _, receipt = rewrite(mixture(sines), *STEPS)
    (reason,) = receipt.skipped
    assert receipt.changed == 0 and "no known router has 0 tensors and is made of getitem, sin, square, topk" in reason


def test_a_factor_of_each_expert_is_not_taken_for_a_bias():
    """Both are one tensor [E] beside a softmax."""
    _, receipt = rewrite(mixture(scaled_per_expert, factor=(EXPERTS,)), *STEPS)
    (reason,) = receipt.skipped
    assert receipt.changed == 0 and 'the nearest, {"k": 2, "kind": "softmax_bias_topk"' in reason


ELSEWHERE = {
    "no product of a router": (lambda m, x: x.exp(), "reads x where the product of one router was expected"),
    "two products": (lambda m, x: x @ m.gate.T + (x * x) @ m.gate.T, "where the product of one router was expected"),
    "logits of another shape": (lambda m, x: (x @ m.gate.T @ m.turn)[:, :EXPERTS], "router logits are"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_routing_that_reads_something_else_is_left_with_the_reason(name):
    logits, reason = ELSEWHERE[name]
    _, receipt = rewrite(mixture(softmax_topk_div, logits=logits, turn=(EXPERTS, EXPERTS + 1)), *STEPS)
    assert receipt.changed == 0 and len(receipt.skipped) == 1 and reason in receipt.skipped[0]


def test_ids_from_outside_are_left():
    """A router that runs elsewhere hands over what it chose (hash layers, replayed routing)."""

    def handed_over(m, logits, ids):
        return ids, torch.ones_like(ids, dtype=logits.dtype)

    ids = torch.randint(0, EXPERTS, (7, 2), generator=torch.Generator().manual_seed(0))
    _, receipt = rewrite(mixture(handed_over), *STEPS, ids=ids)
    assert receipt.changed == 0 and "where the product of one router was expected" in receipt.skipped[0]


def test_the_reason_names_the_layer():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([mixture(softmax_topk_div), mixture(tilted)])

        def forward(self, x):
            return self.layers[1](self.layers[0](x))

    _, receipt = rewrite(Model(), *STEPS)
    assert receipt.changed == 1 and receipt.skipped[0].startswith("layers.1: ")
