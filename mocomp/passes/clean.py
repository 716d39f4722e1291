"""Remove what a trace holds and nobody needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mocomp.ir.program import Program
from mocomp.ir.rewrite import is_call, op_name, written
from mocomp.ir.stages import ASSERTIONS, Stage
from mocomp.passes import Changes, Pass

aten = torch.ops.aten
CASTS = (aten.type_as.default, aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default)
COPIES = (aten.alias.default, aten.detach.default, aten.contiguous.default, aten.lift_fresh_copy.default)
RESHAPES = (aten.view.default, aten.reshape.default)
DROPOUTS = (aten.dropout.default, aten.feature_dropout.default)


@dataclass(frozen=True)
class Clean(Pass):
    """assert(x), x.to(its type), x[0:end], x.view(its shape), dropout(x) at inference   ->   x; unused nodes   ->   nothing

    Leaves casts that change a type, slices that cut, and in-place ops.
    """

    name: ClassVar[str] = "clean"
    needs: ClassVar[Stage] = Stage.TRACED
    gives: ClassVar[Stage] = Stage.CANONICAL

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        changing = written(program.graph)
        for node in list(program.graph.nodes):
            if node.op == "call_function" and op_name(node) in ASSERTIONS:
                program.graph.erase_node(node)
                changes.count += 1
            elif _changes_nothing(node) and changing.isdisjoint([node, node.args[0]]):
                node.replace_all_uses_with(node.args[0])
                program.graph.erase_node(node)
                changes.count += 1
        before = len(program.graph.nodes)
        program.graph.eliminate_dead_code()
        changes.count += before - len(program.graph.nodes) + program.remove_dead_weights()
        return changes


def _changes_nothing(node: Any) -> bool:
    if is_call(node, *CASTS):
        return node.meta["val"].dtype == node.args[0].meta["val"].dtype
    if is_call(node, aten.slice.Tensor):
        dim, start, stop, step = (*node.args[1:], *(0, 0, None, 1)[len(node.args) - 1 :])
        return start in (0, None) and (stop is None or stop == 2**63 - 1) and step == 1 and isinstance(dim, int)
    if is_call(node, *RESHAPES):
        return node.meta["val"].shape == node.args[0].meta["val"].shape
    if is_call(node, *DROPOUTS):
        return node.args[2] is False
    return is_call(node, *COPIES)
