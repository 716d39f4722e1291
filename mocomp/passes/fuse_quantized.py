"""Packed weights go into the operators that compute on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, insert, is_call, scope
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Numerics, Pass
from mocomp.quant.formats import Format, parse

aten = torch.ops.aten


@dataclass(frozen=True)
class FuseQuantized(Pass):
    """mixture(x, logits, .., dequantize(a), .., dequantize(b))   ->   quantized_mixture(x, logits, .., a, .., b)
    linear(x, dequantize(a), bias)                              ->   quantized_linear(x, a, bias)

    Where `mixture` and `linear`, which say why the target has no such operator or None, let it. What is left is unpacked
    when the model runs.
    """

    name: ClassVar[str] = "fuse_quantized"
    needs: ClassVar[Stage] = Stage.ROUTED
    gives: ClassVar[Stage] = Stage.ROUTED
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES
    mixture: Callable[[list[tuple[Format, tuple[int, ...]]]], str | None]
    linear: Callable[[Format, tuple[int, ...]], str | None]

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        for node in calls(program, MOCOMP.mixture.default, aten.linear.default):
            weights = _weights(node)
            if not any(is_call(weight, MOCOMP.dequantize.default) for weight in weights):
                continue
            reason = self._obstacle(node)
            if reason is not None:
                changes.skipped.append(f"{scope(node) or node.name}: {reason}")
                continue
            _replace(program, node, weights)
            changes.count += 1
        program.graph.eliminate_dead_code()
        return changes

    def obstacles(self, program: Program) -> list[tuple[str, str]]:
        """(where, why) the target cannot compute on each packed weight that nothing fused."""
        nodes = [user for unpacked in calls(program, MOCOMP.dequantize.default) for user in unpacked.users]
        fusable = [node for node in dict.fromkeys(nodes) if node.target in (MOCOMP.mixture.default, aten.linear.default)]
        left = [(scope(node) or node.name, "the weights are unpacked first") for node in nodes if node not in fusable]
        return [(scope(node) or node.name, str(self._obstacle(node))) for node in fusable] + left

    def _obstacle(self, node: fx.Node) -> str | None:
        weights = _weights(node)
        if not all(is_call(weight, MOCOMP.dequantize.default) for weight in weights):
            return "one projection is quantised and the other is not"
        stored = [(parse(weight.args[1]), tuple(weight.meta["val"].shape)) for weight in weights]
        return self.mixture(stored) if node.target is MOCOMP.mixture.default else self.linear(*stored[0])


def formats_of(program: Program) -> dict[str, str]:
    """The format of each packed weight that operators compute on, by the weight's name."""
    found: dict[str, Any] = {}
    for node in calls(program, MOCOMP.quantized_mixture.default):
        found |= {_name(program, node.args[2]): node.args[8], _name(program, node.args[4]): node.args[9]}
    for node in calls(program, MOCOMP.quantized_linear.default):
        found[_name(program, node.args[1])] = node.args[3]
    return found


def linears_of(program: Program) -> dict[str, str]:
    """The module of each linear layer of packed weights, by the weight's name."""
    return {_name(program, node.args[1]): scope(node) for node in calls(program, MOCOMP.quantized_linear.default)}


def _name(program: Program, parts: list[fx.Node]) -> str:
    """The name of the weight that these are the parts of."""
    return {node: name for node, name in program.weights()}[parts[0]].removesuffix(".codes")


def _weights(node: fx.Node) -> list[Any]:
    return [node.args[i] for i in ((3, 5) if node.target is MOCOMP.mixture.default else (1,))]


def _replace(program: Program, node: fx.Node, weights: list[Any]) -> None:
    if node.target is MOCOMP.mixture.default:
        x, logits, _, _, b_in, _, b_out, router, expert = node.args
        w_in, w_out = ((weight.args[0], weight.args[1]) for weight in weights)
        arguments: tuple[Any, ...] = (x, logits, w_in[0], b_in, w_out[0], b_out, router, expert, w_in[1], w_out[1])
        fused = insert(program, node, MOCOMP.quantized_mixture.default, arguments)
    else:
        x, _, *bias = node.args
        arguments = (x, weights[0].args[0], bias[0] if bias else None, weights[0].args[1])
        fused = insert(program, node, MOCOMP.quantized_linear.default, arguments)
    node.replace_all_uses_with(fused)
    program.graph.erase_node(node)
