"""Routers in plain torch ops."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, inline, is_call
from mocomp.ir.specs import parse
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Numerics, Pass


@dataclass(frozen=True)
class ExpandRoutes(Pass):
    """ids, weights = route(logits)   ->   the ops of the router's reference

    For the routes that no fused operator took. Leaves those that say the experts of mixtures which are left.
    """

    name: ClassVar[str] = "expand_routes"
    needs: ClassVar[Stage] = Stage.ROUTED
    gives: ClassVar[Stage] = Stage.ROUTED
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        for node in calls(program, MOCOMP.route.default):
            if _says_experts(node):
                continue
            logits, tensors, spec = node.args
            results = inline(program, node, parse("mocomp.routers", "Router", spec).choose, [logits, *tensors])
            for user in list(node.users):
                assert user.target is operator.getitem
                user.replace_all_uses_with(results[user.args[1]])
                program.graph.erase_node(user)
            program.graph.erase_node(node)
            changes.count += 1
        return changes


def _says_experts(route: Any) -> bool:
    """Whether its ids go into a mixture; `route` gives (ids, weights)."""
    ids = [user for user in route.users if user.args[1] == 0]
    return any(is_call(user, MOCOMP.experts.default) and user.args[1] is given for given in ids for user in given.users)
