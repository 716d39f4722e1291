"""Mixtures that a target has no operator for run in plain torch ops, whatever the expert."""

import pytest
import torch
from torch.nn import functional

from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.ir.specs import spell
from mocomp.passes.clean import Clean
from mocomp.passes.expand_experts import ExpandExperts
from mocomp.passes.expand_routes import ExpandRoutes
from mocomp.routers.auxiliary import Auxiliary
from mocomp.routers.expert_choice import ExpertChoice
from mocomp.routers.topk_uniform import TopKUniform
from tests.programs import EXPERTS, HIDDEN, WIDTH, Formula, mixture, op_names, rewrite


def routed(m, logits):
    weights, ids = torch.topk(logits.softmax(-1), 2)
    return ids, weights


def never(expert):
    return False


def always(expert):
    return True


@pytest.mark.parametrize(
    "expert", [GLU(), GLU("gelu"), GLU("silu", 1.702, 1.0, 0.5), FFN("relu2"), FFN("tanh"), GLU("sigmoid")], ids=str
)
def test_no_expert_is_too_strange(expert):
    program, receipt = rewrite(mixture(routed, expert), Clean(), ExpandExperts(taken=never))
    assert receipt.changed == 1 and receipt.options == {}
    assert calls(program, MOCOMP.experts.default) == [] and "bmm" in op_names(program)


def test_biases_come_along():
    def formula(m, x):
        ids, weights = routed(m, x @ m.gate.T)
        spec = '{"kind": "glu", "activation": "silu"}'
        return torch.ops.mocomp.experts(x, ids, weights, m.w_in, m.b_in, m.w_out, m.b_out, spec)

    shapes = {"w_in": (EXPERTS, 2 * WIDTH, HIDDEN), "b_in": (EXPERTS, 2 * WIDTH), "w_out": (EXPERTS, HIDDEN, WIDTH)}
    model = Formula(formula, gate=(EXPERTS, HIDDEN), b_out=(EXPERTS, HIDDEN), **shapes)
    assert rewrite(model, Clean(), ExpandExperts(taken=never))[1].changed == 1


def test_what_the_target_takes_is_left_and_named():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([mixture(routed), mixture(routed, FFN("relu2"))])

        def forward(self, x):
            return self.layers[1](self.layers[0](x))

    program, receipt = rewrite(Model(), Clean(), ExpandExperts(taken=lambda expert: expert.gated))
    assert receipt.changed == 1 and len(calls(program, MOCOMP.experts.default)) == 1
    assert receipt.skipped == ["layers.0: glu is taken by the target"]


def test_nothing_is_said_where_everything_is_fused():
    """That is how it should be, and no note to read."""
    _, receipt = rewrite(mixture(routed), Clean(), ExpandExperts(taken=always))
    assert receipt.changed == 0 and receipt.skipped == []


def by(router, factor=None):
    """A mixture routed by `router`, its weights taken times a factor per token."""

    def route(m, x):
        tensors = [functional.linear(x, m.auxiliary)] if isinstance(router, Auxiliary) else []
        ids, weights = torch.ops.mocomp.route(functional.linear(x, m.gate), tensors, spell(router))
        return ids, weights if factor is None else weights * factor(x)

    return mixture(route, logits=lambda m, x: x, auxiliary=(EXPERTS, HIDDEN))


@pytest.mark.parametrize("factor", [None, lambda x: x.abs().sum(-1, keepdim=True)], ids=["plain", "scaled"])
@pytest.mark.parametrize("router", [ExpertChoice(EXPERTS), Auxiliary(EXPERTS)], ids=lambda router: router.name)
def test_experts_of_a_token_that_may_have_none_are_not_fused(router, factor):
    """Although the target has an operator for the expert: it weighs by a softmax, which is never all zero."""
    program, receipt = rewrite(by(router, factor), Clean(), ExpandExperts(taken=always), ExpandRoutes())
    assert calls(program, MOCOMP.experts.default, MOCOMP.route.default) == [] and "bmm" in op_names(program)
    _, receipt = rewrite(by(router, factor), Clean(), ExpandExperts(taken=always))
    assert receipt.changed == 1 and receipt.skipped == []


def test_experts_of_a_router_that_gives_every_token_as_many_are_fused():
    assert rewrite(by(TopKUniform(EXPERTS)), Clean(), ExpandExperts(taken=always))[1].changed == 0
