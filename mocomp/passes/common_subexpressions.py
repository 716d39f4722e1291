"""Compute the same thing once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import is_pure, written
from mocomp.passes import Changes, Pass


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """a = f(x); b = f(x)   ->   a = f(x); b = a

    Leaves random ops, ops that write to their arguments, and what reads or views the values that such ops write to.
    """

    name: ClassVar[str] = "common_subexpressions"

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        changing = written(program.graph)
        seen: dict[Any, fx.Node] = {}
        for node in list(program.graph.nodes):
            if node.op != "call_function" or not is_pure(node) or not changing.isdisjoint([node, *node.all_input_nodes]):
                continue
            key = (node.target, _key(node.args), _key(node.kwargs))
            if (first := seen.setdefault(key, node)) is not node:
                node.replace_all_uses_with(first)
                program.graph.erase_node(node)
                changes.count += 1
        return changes


def _key(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    return (type(value), value)  # 1, 1.0 and True are equal, and not the same argument
