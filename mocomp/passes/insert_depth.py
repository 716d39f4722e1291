"""Decoder layers that tokens go through or past."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from mocomp.errors import MocompError, Unsupported
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, insert, is_call, scope
from mocomp.passes import Changes, Numerics, Pass
from mocomp.plans.plan import HIDDEN, DepthPlan
from mocomp.weights.recipes import Recipe

aten = torch.ops.aten


@dataclass(frozen=True)
class InsertDepth(Pass):
    """y = layer(x)   ->   y = x + where(decision(x) > 0, sigmoid(score(x)) * (layer(x) - x), 0)

    Mixture-of-depths in the causal form (Raposo et al. 2024). A token that goes past a layer is hidden from the others:
    its key becomes zeros before it enters the cache, and keys of zeros are masked. Leaves layers that no plan names.
    """

    name: ClassVar[str] = "insert_depth"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATES
    plans: tuple[DepthPlan, ...] = field(repr=False)
    weights: dict[str, Recipe] = field(repr=False)

    def apply(self, program: Program) -> Changes:
        for plan in self.plans:
            x, y, attention = _layer(program, plan)
            mine = {
                name: program.add_weight(f"{plan.layer}.{name}", self.weights[f"{plan.layer}.{name}"]) for name in plan.shapes()
            }
            first = _first_user(program, x, plan.layer)
            scores = insert(program, first, aten.linear.default, (x, mine["depth.router"]))
            decisions = scores
            if plan.auxiliary:
                hidden = insert(program, first, aten.linear.default, (x, mine["depth.aux_in"]))
                hidden = insert(program, first, aten.silu.default, (hidden,))
                decisions = insert(program, first, aten.linear.default, (hidden, mine["depth.aux_out"]))
            through = insert(program, first, aten.gt.Scalar, (decisions, 0))
            _hide(program, attention, through)
            _blend(program, x, y, scores, through)
        return Changes(len(self.plans))


def _layer(program: Program, plan: DepthPlan) -> tuple[fx.Node, fx.Node, fx.Node]:
    """(x [B, S, H] that enters a decoder layer, y that leaves it, its attention)."""
    inside = {n for n in program.graph.nodes if n.op == "call_function" and _is_inside(n, plan.layer)}
    entering = {a for n in inside for a in n.all_input_nodes if a not in inside and _is_stream(a, plan.hidden)}
    leaving = [n for n in inside if _is_stream(n, plan.hidden) and any(user not in inside for user in n.users)]
    attention = [n for n in calls(program, MOCOMP.attention.default) if n in inside]
    if not inside:
        raise MocompError(f"no layer {plan.layer} in the traced graph", where="insert_depth")
    if len(entering) != 1 or len(leaving) != 1 or len(attention) != 1:
        raise Unsupported(
            "mixture-of-depths needs a layer with one hidden state in, one out and one attention", where=plan.layer
        )
    return entering.pop(), leaving[0], attention[0]


def _is_inside(node: fx.Node, layer: str) -> bool:
    return scope(node) == layer or scope(node).startswith(layer + ".")


def _is_stream(node: fx.Node, hidden: int) -> bool:
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, torch.Tensor) and value.dim() == 3 and value.shape[-1] == hidden


def _first_user(program: Program, x: fx.Node, layer: str) -> fx.Node:
    return next(n for n in program.graph.nodes if x in n.all_input_nodes and _is_inside(n, layer))


def _hide(program: Program, attention: fx.Node, through: fx.Node) -> None:
    """Zeros for keys of tokens that go past, before they are cached; keys of zeros, cached or new, are masked."""
    k, mask = attention.args[1], attention.args[3]
    assert isinstance(k, fx.Node)
    if mask is None:
        raise Unsupported("mixture-of-depths needs attention with a mask", where=scope(attention))
    cached = is_call(k, aten.cat.default)
    new = k.args[0][-1] if cached else k
    before = k if cached else attention
    by_head = insert(program, before, aten.unsqueeze.default, (through, 1))  # [B, 1, S, 1]
    zeroed = insert(program, before, aten.where.ScalarOther, (by_head, new, 0.0))
    if cached:
        k.args = ([*k.args[0][:-1], zeroed], *k.args[1:])
    else:
        k = zeroed
        attention.update_arg(1, k)
    size = insert(program, attention, aten.abs.default, (k,))
    largest = insert(program, attention, aten.amax.default, (size, [1, 3]))  # [B, P]
    absent = insert(program, attention, aten.eq.Scalar, (largest, 0))
    for dim in (1, 1):
        absent = insert(program, attention, aten.unsqueeze.default, (absent, dim))  # [B, 1, 1, P]
    added = insert(program, attention, aten.where.Scalar, (absent, HIDDEN, 0.0))
    attention.update_arg(3, insert(program, attention, aten.add.Tensor, (mask, added)))


def _blend(program: Program, x: fx.Node, y: fx.Node, scores: fx.Node, through: fx.Node) -> None:
    after = y.next
    difference = insert(program, after, aten.sub.Tensor, (y, x), like=y)
    share = insert(program, after, aten.sigmoid.default, (scores,), like=y)
    update = insert(program, after, aten.mul.Tensor, (share, difference), like=y)
    kept = insert(program, after, aten.where.ScalarOther, (through, update, 0.0), like=y)
    blended = insert(program, after, aten.add.Tensor, (x, kept), like=y)
    y.replace_all_uses_with(blended, delete_user_cb=lambda user: user is not difference)
