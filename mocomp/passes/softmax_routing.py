"""Every router as softmax over the top-k, for operators that route that way themselves."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.experts import Expert
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, inline, insert, is_call
from mocomp.ir.specs import parse, spell
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Numerics, Pass
from mocomp.routers import Router
from mocomp.routers.topk_softmax import TopKSoftmax

aten = torch.ops.aten


@dataclass(frozen=True)
class SoftmaxRouting(Pass):
    """experts(x, *route(logits))   ->   mixture(x, logits', softmax top-k)

    The mixture weighs by softmax over the chosen. Softmax over the k largest of log(s) is s / sum(s), so these forms
    are exact:
    a router that is softmax top-k keeps its logits; if its weights are not divided by their sum, the result is
    multiplied by that sum;
    a router that gives a positive score s and chooses by another value: logits' = log(s) where chosen, else -inf;
    any other, or ids and weights that came from nowhere known: logits' = log of the weights scattered into [T, E],
    and the result is multiplied by the sum of the weights, which must not be negative.
    Leaves kinds of experts that `fused` says no to.
    """

    name: ClassVar[str] = "softmax_routing"
    needs: ClassVar[Stage] = Stage.ROUTED
    gives: ClassVar[Stage] = Stage.ROUTED
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES
    fused: Callable[[Expert], bool] = field(default=lambda expert: True)

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        for node in calls(program, MOCOMP.experts.default):
            if not self.fused(parse("mocomp.experts", "Expert", node.args[7])):
                continue
            route = _route_of(node)
            if route is None:
                _through_shares(program, node)
            else:
                _through_router(program, node, route)
            changes.count += 1
        program.graph.eliminate_dead_code()
        return changes


def _route_of(node: Any) -> fx.Node | None:
    weights = node.args[2]
    known = is_call(weights, operator.getitem) and is_call(weights.args[0], MOCOMP.route.default)
    return weights.args[0] if known else None


def _through_router(program: Program, node: fx.Node, route: fx.Node) -> None:
    logits, tensors, spec = route.args
    router: Router = parse("mocomp.routers", "Router", spec)
    if (softmax := router.as_softmax()) is not None:
        mixture = _replace(program, node, logits, spell(TopKSoftmax(router.k, softmax.scale)))
        if not softmax.over_chosen:
            _multiply(program, mixture, inline(program, mixture, _chosen_share(router.k), [logits]))
    elif (form := router.as_log_scores()) is not None:
        scores = inline(program, node, form.function, [logits, *tensors])
        _replace(program, node, scores, spell(TopKSoftmax(router.k, form.scale)))
    else:
        alike = not router.per_sequence and logits.meta["val"].shape[-1] == node.args[3].meta["val"].shape[0]
        _through_shares(program, node, inline(program, node, torch.zeros_like, [logits]) if alike else None)


def _through_shares(program: Program, node: fx.Node, zeros: fx.Node | None = None) -> None:
    """`zeros` [T, E], where there are router logits of that shape; otherwise made from the weights."""
    ids, weights = node.args[1], node.args[2]
    experts, k = node.args[3].meta["val"].shape[0], ids.meta["val"].shape[1]
    if zeros is None:
        zeros = inline(program, node, lambda w: w.new_zeros(w.shape[0], experts), [weights])
    logits = inline(program, node, lambda z, i, w: z.scatter_add(1, i, w).log(), [zeros, ids, weights])
    total = insert(program, node, aten.sum.dim_IntList, (weights, [1], True))
    _multiply(program, _replace(program, node, logits, spell(TopKSoftmax(k))), total)


def _chosen_share(k: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """logits [T, E] -> the sum of the k largest of their softmax [T, 1]."""
    return lambda logits: torch.topk(torch.softmax(logits, -1), k, -1)[0].sum(-1, keepdim=True)


def _multiply(program: Program, mixture: fx.Node, factor: fx.Node) -> None:
    with program.graph.inserting_after(mixture):
        scaled = program.graph.call_function(aten.mul.Tensor, (mixture, factor))
    scaled.meta.update(mixture.meta)
    mixture.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)


def _replace(program: Program, node: fx.Node, logits: fx.Node, router: str) -> fx.Node:
    x, _, _, *bank, expert = node.args
    arguments: tuple[Any, ...] = (x, logits, [], *bank, router, expert)
    mixture = insert(program, node, MOCOMP.mixture.default, arguments)
    node.replace_all_uses_with(mixture)
    program.graph.erase_node(node)
    return mixture
