"""A constant factor on routing weights moves into the router; any other stays, with the reason."""

import pytest
import torch

from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.ir.specs import parse
from mocomp.passes.clean import Clean
from mocomp.passes.fold_router_scale import FoldRouterScale
from mocomp.passes.fuse_routing import FuseRouting
from tests.programs import mixture, op_names, rewrite

STEPS = (Clean(), FuseRouting(), FoldRouterScale())


def routed(m, logits):
    weights, ids = torch.topk(logits.softmax(-1), 2)
    return ids, weights


def sparse(m, logits):
    """Phi's router, which has no factor of its own."""
    largest, best = logits.max(-1, keepdim=True)
    near = logits.masked_fill((largest - logits) / logits.abs().clamp(min=largest) > 0.02, float("-inf"))
    return best, near.softmax(-1).gather(-1, best)


def times(route, factor):
    def scaled(m, logits):
        ids, weights = route(m, logits)
        return ids, weights * factor

    return mixture(scaled)


@pytest.mark.parametrize("factor", [2.5, 16, 0.125])
def test_a_constant_factor_is_folded(factor):
    program, receipt = rewrite(times(routed, factor), *STEPS)
    (route,) = calls(program, MOCOMP.route.default)
    assert parse("mocomp.routers", "Router", route.args[2]).scale == pytest.approx(factor)
    assert receipt.changed == 1 and "mul" not in op_names(program)


def test_a_router_without_a_factor_keeps_it_outside():
    program, receipt = rewrite(times(sparse, 3.0), *STEPS)
    assert receipt.changed == 0 and op_names(program).count("mul") == 1
    assert receipt.skipped[0].endswith(": sparse_mixer weights times 3.0, not foldable")


def test_products_elsewhere_are_none_of_its_business():
    model = mixture(routed, logits=lambda m, x: (2.0 * x) @ m.gate.T)
    _, receipt = rewrite(model, *STEPS)
    assert receipt.changed == 0 and receipt.skipped == []
