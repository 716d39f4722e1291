"""Mixtures that a target has no fused operator for, in plain torch ops."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from mocomp.experts import Expert
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, inline, is_call, scope
from mocomp.ir.specs import parse
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Numerics, Pass
from mocomp.routers import Router


@dataclass(frozen=True)
class ExpandExperts(Pass):
    """experts(x, ids, weights, ...)   ->   every expert on every token, then the weighted sum

    For kinds of experts that `taken` says no to, so that any kind lowers on the day it is added, slowly; and for routers
    under which a token may have any number of experts. Leaves the others, and all routers.
    """

    name: ClassVar[str] = "expand_experts"
    needs: ClassVar[Stage] = Stage.ROUTED
    gives: ClassVar[Stage] = Stage.ROUTED
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES
    taken: Callable[[Expert], bool]

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        for node in calls(program, MOCOMP.experts.default):
            expert: Expert = parse("mocomp.experts", "Expert", node.args[7])
            if self.taken(expert) and _has_fixed_number(node):
                changes.skipped.append(f"{scope(node)}: {expert.name} is taken by the target")
                continue
            _expand(program, node, expert)
            changes.count += 1
        changes.skipped = sorted(set(changes.skipped)) if changes.count else []
        program.graph.eliminate_dead_code()
        return changes


def _has_fixed_number(node: fx.Node) -> bool:
    """Whether every token has K experts, as far as is known. By the ids: weights may have been scaled since."""
    ids: Any = node.args[1]
    if not (is_call(ids, operator.getitem) and is_call(ids.args[0], MOCOMP.route.default)):
        return True
    router: Router = parse("mocomp.routers", "Router", ids.args[0].args[2])
    return router.fixed


def _expand(program: Program, node: fx.Node, expert: Expert) -> None:
    arguments = node.args[:7]
    present = [i for i, argument in enumerate(arguments) if argument is not None]

    def mixture(*tensors):  # type: ignore[no-untyped-def]
        full = [None] * 7
        for i, tensor in zip(present, tensors, strict=True):
            full[i] = tensor
        return expert.mixture(*full)  # type: ignore[arg-type]

    node.replace_all_uses_with(inline(program, node, mixture, [arguments[i] for i in present]))
    program.graph.erase_node(node)
