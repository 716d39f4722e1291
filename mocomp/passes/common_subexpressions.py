"""Compute the same thing once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.passes import Changes, Pass


@dataclass(frozen=True)
class CommonSubexpressions(Pass):
    """a = f(x); b = f(x)   ->   a = f(x); b = a

    Leaves random ops, ops that write to their arguments, and values that such ops write to.
    """

    name: ClassVar[str] = "common_subexpressions"

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        written = _written(program.graph)
        seen: dict[Any, fx.Node] = {}
        for node in list(program.graph.nodes):
            if node.op != "call_function" or node in written or not _is_pure(node):
                continue
            key = (node.target, _key(node.args), _key(node.kwargs))
            if (first := seen.setdefault(key, node)) is not node:
                node.replace_all_uses_with(first)
                program.graph.erase_node(node)
                changes.count += 1
        return changes


def _is_pure(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    tags = getattr(node.target, "tags", ())
    return schema is None or not (schema.is_mutable or torch.Tag.nondeterministic_seeded in tags)


def _written(graph: fx.Graph) -> set[fx.Node]:
    """The values that an in-place op writes to, and those that they may be views of."""
    waiting = [a for node in graph.nodes if node.op == "call_function" and not _is_pure(node) for a in node.all_input_nodes]
    found: set[fx.Node] = set()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting.extend(node.all_input_nodes[:1])
    return found


def _key(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_key(item) for item in value)
    if isinstance(value, dict):
        return tuple((name, _key(item)) for name, item in sorted(value.items()))
    return (type(value), value)  # 1, 1.0 and True are equal, and not the same argument
