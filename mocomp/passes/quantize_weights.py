"""Weights in few bits: said in the graph, for targets to read packed or to unpack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, insert
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Numerics, Pass
from mocomp.quant.weight import QuantisedWeight

aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """experts(x, .., w_in, .., w_out)   ->   experts(x, .., dequantize(w_in's parts), .., dequantize(w_out's parts))

    For the weights that `weights` names, of experts and of linear layers. Where a weight wants its input scaled, x becomes
    x * inputs. Leaves all others; what the numbers are was decided before.
    """

    name: ClassVar[str] = "quantize_weights"
    needs: ClassVar[Stage] = Stage.ROUTED
    gives: ClassVar[Stage] = Stage.ROUTED
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATES
    weights: dict[str, QuantisedWeight] = field(repr=False)

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        names = {node: name for node, name in program.weights()}
        for node in calls(program, MOCOMP.experts.default, aten.linear.default):
            at = (3, 5) if node.target is MOCOMP.experts.default else (1,)
            for i in at:
                weight = self.weights.get(names.get(node.args[i], ""))
                if weight is not None:
                    _replace(program, node, i, names[node.args[i]], weight)
                    changes.count += 1
        program.remove_dead_weights()
        return changes


def _replace(program: Program, node: fx.Node, i: int, name: str, weight: QuantisedWeight) -> None:
    parts = [_weight(program, f"{name}.{part}", recipe) for part, recipe in weight.parts.items()]
    unpacked = insert(program, node, MOCOMP.dequantize.default, (parts, weight.format, weight.columns))
    node.update_arg(i, unpacked)
    if weight.inputs is not None:
        factor = _weight(program, f"{name}.inputs", weight.inputs)
        node.update_arg(0, insert(program, node, aten.mul.Tensor, (node.args[0], factor)))


def _weight(program: Program, name: str, recipe) -> fx.Node:  # type: ignore[no-untyped-def]
    """The placeholder of that name; a weight that several layers read is there already."""
    for node, known in program.weights():
        if known == name:
            return node
    return program.add_weight(name, recipe)
