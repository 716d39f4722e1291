"""What depends on weights alone becomes a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.passes import Changes, Pass
from mocomp.weights import symbolic
from mocomp.weights.recipes import Recipe


@dataclass(frozen=True)
class FoldWeights(Pass):
    """w.transpose(1, 2), cat([w[:, 0::2], w[:, 1::2]], 1), w * v[:, None]   ->   a weight with that recipe

    Layouts that a front end spelled out in torch become part of how the weight is written, at no cost when the
    model runs. Leaves ops that compute rather than rearrange, but for the product of a matrix or bank with another weight
    that is no larger; and results that would be larger than what they come from (a weight that is expanded, a table made
    from a range).
    """

    name: ClassVar[str] = "fold_weights"

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        known: dict[fx.Node, Any] = {}
        for node, name in program.weights():
            if name in program.recipes:
                known[node] = program.recipes[name]
        sources, parameters = set(known), program.parameters()
        of_parameters = {node for node, name in program.weights() if name in parameters}
        for node in program.graph.nodes:
            if node.op == "call_function" and _all_known(node, known) and (node.target in symbolic.OPS or _is_product(node)):
                known[node] = symbolic.apply(node.target, *_with_recipes(node, known))
                of_parameters |= {node} if of_parameters.issuperset(node.all_input_nodes) else set()
        for node in [n for n in known if n not in sources and isinstance(known[n], Recipe)]:
            outside = [user for user in node.users if user not in known]
            if not outside:
                continue
            weight = program.add_weight(f"folded.{node.name}", known[node], node in of_parameters)
            for user in outside:
                user.replace_input_with(node, weight)
            changes.count += 1
        program.graph.eliminate_dead_code()
        program.remove_dead_weights()
        return changes


def _all_known(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    inputs = node.all_input_nodes
    return bool(inputs) and all(n in known for n in inputs)


def _is_product(node: fx.Node) -> bool:
    """Whether a node multiplies a weight of two dimensions or more by another one, without making it larger."""
    shapes = [n.meta["val"].shape for n in node.all_input_nodes]
    if node.target is not torch.ops.aten.mul.Tensor or len(shapes) != 2:
        return False
    made = node.meta["val"].shape
    return len(made) > 1 and made in shapes


def _with_recipes(node: fx.Node, known: dict[fx.Node, Any]) -> tuple[tuple, dict]:
    return fx.map_arg(node.args, lambda n: known[n]), fx.map_arg(node.kwargs, lambda n: known[n])  # type: ignore[return-value]
