"""Weights in few bits: said in the graph, for targets to read packed or to unpack."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, insert, is_call, scope, subgraph_into
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Numerics, Pass
from mocomp.quant.weight import QuantisedWeight

aten = torch.ops.aten


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """experts(x, .., w_in, .., w_out)   ->   experts(x, .., dequantize(w_in's parts), .., dequantize(w_out's parts))

    For the weights that `weights` names, of experts and of linear layers. Where a weight wants its input scaled, x becomes
    x * inputs. Leaves all others; what the numbers are was decided before. What else reads such a weight, as an embedding
    does that a head is tied to, reads the floats under a name of their own.
    """

    name: ClassVar[str] = "quantize_weights"
    needs: ClassVar[Stage] = Stage.ROUTED
    gives: ClassVar[Stage] = Stage.ROUTED
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATES
    weights: dict[str, QuantisedWeight] = field(repr=False)

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        names: dict[Any, str] = {node: name for node, name in program.weights()}
        for node in calls(program, MOCOMP.experts.default, aten.linear.default):
            for i in _places(node):
                weight = self.weights.get(names.get(node.args[i], ""))
                if weight is not None:
                    _replace(program, node, i, names[node.args[i]], weight)
                    changes.count += 1
        _name_apart(program, self.weights)
        program.remove_dead_weights()
        return changes


def banks(program: Program) -> dict[str, tuple[str, str]]:
    """The names of the weights of each layer's experts, (w_in, w_out), by the layer's."""
    names = {node: name for node, name in program.weights()}
    found = [(scope(n), n.args[3], n.args[5]) for n in calls(program, MOCOMP.experts.default)]
    return {layer: (names[w_in], names[w_out]) for layer, w_in, w_out in found if w_in in names and w_out in names}


def expert_weights(program: Program) -> list[str]:
    """The names of the experts' weights, in their order."""
    return [name for pair in banks(program).values() for name in pair]


def dense_weights(program: Program) -> list[str]:
    """The names of the weights of linear layers that are neither routers nor gates of a shared expert."""
    names = {node: name for node, name in program.weights()}
    routers: set[fx.Node] = set()
    for node in calls(program, MOCOMP.experts.default):
        routing = [argument for argument in node.args[1:3] if isinstance(argument, fx.Node)]
        _, edge = subgraph_into(routing, lambda n: n.op == "placeholder" or is_call(n, aten.linear.default))
        routers |= {n for n in edge if n.op == "call_function"}
    layers = calls(program, aten.linear.default)
    once = Counter(n.args[1] for n in layers)  # what several layers share would see the inputs of one of them only
    found = [n for n in layers if n not in routers and n.args[1] in names and once[n.args[1]] == 1]
    return [names[n.args[1]] for n in found if n.args[1].meta["val"].shape[0] > 1]


def quantisable(program: Program, weights: Collection[str]) -> set[fx.Node]:
    """The nodes of experts and linear layers that read one of `weights`."""
    names = {node: name for node, name in program.weights()}
    found = calls(program, MOCOMP.experts.default, aten.linear.default)
    return {node for node in found if any(names.get(node.args[i]) in weights for i in _places(node))}


def _places(node: fx.Node) -> tuple[int, ...]:
    """Which arguments of a node are weights that may be quantised."""
    return (3, 5) if node.target is MOCOMP.experts.default else (1,)


def _replace(program: Program, node: fx.Node, i: int, name: str, weight: QuantisedWeight) -> None:
    parts = [_weight(program, f"{name}.{part}", recipe) for part, recipe in weight.parts.items()]
    unpacked = insert(program, node, MOCOMP.dequantize.default, (parts, weight.format, weight.columns))
    node.update_arg(i, unpacked)
    if weight.inputs is not None:
        factor = _weight(program, f"{name}.inputs", weight.inputs)
        node.update_arg(0, insert(program, node, aten.mul.Tensor, (node.args[0], factor)))


def _name_apart(program: Program, names: Collection[str]) -> None:
    """Give floats that are still read a name beside those of the parts: one name cannot be a tensor and hold others."""
    for node, name in list(program.weights()):
        if name in names and node.users:
            node.replace_all_uses_with(program.add_weight(f"{name}.floats", program.recipes[name]))


def _weight(program: Program, name: str, recipe) -> fx.Node:  # type: ignore[no-untyped-def]
    """The placeholder of that name; a weight that several layers read is there already."""
    for node, known in program.weights():
        if known == name:
            return node
    return program.add_weight(name, recipe, parameter=False)
