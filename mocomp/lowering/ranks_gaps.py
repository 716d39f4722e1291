"""Why a program cannot be cut at its mixtures, told by the program as its target's passes left it."""

from __future__ import annotations

import math
from typing import Any

from mocomp.capability import Gap
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, is_call, scope
from mocomp.lowering import unfused


def of_operators(program: Program, layers: list[str]) -> list[Gap]:
    """Of mixtures that are to be fused operators, and calls where there is none: what keeps the calls from being cut, and
    mixtures that are neither."""
    fused = {scope(node) for node in calls(program, MOCOMP.mixture.default, MOCOMP.quantized_mixture.default)}
    called = {scope(node) for node in calls(program, MOCOMP.experts.default)}
    why = "its tokens may have any number of experts, so that all are computed, where none can be cut from the others"
    spread = [Gap(layer, why, "take --target onnx") for layer in layers if layer not in fused | called]
    return spread + of_calls(program, [layer for layer in layers if layer in called])


def of_calls(program: Program, layers: list[str]) -> list[Gap]:
    """Of mixtures that are to be calls of functions: those whose router is not known, and those of which an expert does not
    fill whole bytes."""
    routed = {scope(node) for node in calls(program, MOCOMP.experts.default) if _is_routed(node.args[1])}
    unknown = [
        Gap(layer, "its router is none that mocomp knows, so nothing tells its choice")
        for layer in layers
        if layer not in routed
    ]
    packed = unfused.packed(program)
    split = [
        Gap(name, f"an expert in {form.text} does not fill whole bytes, so experts cannot be stored apart", "take int8")
        for name, (form, shape) in packed.items()
        if len(shape) == 3 and math.prod(shape[1:]) * form.bits % 8
    ]
    return unknown + split


def _is_routed(ids: Any) -> bool:
    """Whether ids come straight from a route: (ids, weights) = route(...)."""
    return bool(ids.args) and is_call(ids.args[0], MOCOMP.route.default)
