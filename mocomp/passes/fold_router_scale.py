"""A constant factor on routing weights belongs to the router."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, is_call
from mocomp.ir.specs import parse, spell
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Numerics, Pass


@dataclass(frozen=True)
class FoldRouterScale(Pass):
    """c * route(logits).weights   ->   route(logits, scale=c).weights

    Leaves factors that are not constants, and routers that have no such parameter.
    """

    name: ClassVar[str] = "fold_router_scale"
    needs: ClassVar[Stage] = Stage.ROUTED
    gives: ClassVar[Stage] = Stage.ROUTED
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        for node in calls(program, torch.ops.aten.mul.Tensor):
            weights, factor = node.args
            if not (is_call(weights, operator.getitem) and is_call(weights.args[0], MOCOMP.route.default)):
                continue
            route = weights.args[0]
            router = parse("mocomp.routers", "Router", route.args[2])
            scaled = router.scaled(factor) if isinstance(factor, (int, float)) else None
            if scaled is None or len(weights.users) > 1:
                changes.skipped.append(f"{node.name}: {router.name} weights times {factor}, not foldable")
                continue
            route.update_arg(2, spell(scaled))
            node.replace_all_uses_with(weights)
            program.graph.erase_node(node)
            changes.count += 1
        return changes
