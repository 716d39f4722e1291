"""The routes that no fused operator took run as the router's reference, bit for bit."""

import pytest
import torch

from mocomp.ir import ops  # noqa: F401  (registers mocomp::route)
from mocomp.ir.specs import spell
from mocomp.passes import run
from mocomp.passes.expand_routes import ExpandRoutes
from mocomp.routers.expert_choice import ExpertChoice
from mocomp.routers.sigmoid_topk import SigmoidTopK
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.routers.sparse_mixer import SparseMixer
from mocomp.routers.topk_uniform import TopKUniform
from tests.programs import EXPERTS, Formula, op_names, trace

ROUTERS = [SoftmaxTopK(2, normalize=True, scale=2.5), SigmoidTopK(2, groups=4, groups_kept=2), SparseMixer(2)]
ROUTERS += [TopKUniform(2), ExpertChoice(EXPERTS, 1.5)]


def routes(router, which=(0, 1)):
    def formula(m, x):
        results = torch.ops.mocomp.route(x, [m.bias] if isinstance(router, SigmoidTopK) else [], spell(router))
        return [results[i] for i in which]

    return trace(Formula(formula, bias=(EXPERTS,)), width=EXPERTS)


@pytest.mark.parametrize("router", ROUTERS, ids=lambda router: router.name)
def test_a_route_becomes_the_ops_of_its_router(router):
    traced = routes(router)
    expected = traced.run()
    receipt = run(ExpandRoutes(), traced.program)
    assert receipt.changed == 1 and "route" not in op_names(traced.program)
    assert all(torch.equal(a, b) for a, b in zip(traced.run(), expected, strict=True))


@pytest.mark.parametrize("which", [(0,), (1,), (1, 0, 1)])
def test_whichever_of_its_results_is_used(which):
    traced = routes(ROUTERS[0], which)
    expected = traced.run()
    run(ExpandRoutes(), traced.program)
    assert all(torch.equal(a, b) for a, b in zip(traced.run(), expected, strict=True))
