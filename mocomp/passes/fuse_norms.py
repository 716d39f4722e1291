"""RMS norms in one op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, insert, is_call
from mocomp.passes import Changes, Numerics, Pass

aten = torch.ops.aten


@dataclass(frozen=True)
class FuseNorms(Pass):
    """w * (x * rsqrt(mean(x ** 2, -1) + eps))   ->   mocomp::rms_norm(x, w, eps)

    Leaves norms without a weight, over other dimensions, and those in which a cast stands.
    """

    name: ClassVar[str] = "fuse_norms"
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        for root in calls(program, aten.rsqrt.default):
            found = _match(root)
            if isinstance(found, str):
                changes.skipped.append(f"{root.name}: {found}")
                continue
            x, weight, epsilon, result = found
            fused = insert(program, result, MOCOMP.rms_norm.default, (x, weight, epsilon))
            result.replace_all_uses_with(fused)
            changes.count += 1
        program.graph.eliminate_dead_code()
        return changes


def _match(root: Any) -> tuple[fx.Node, fx.Node, float, fx.Node] | str:
    """(x, weight, epsilon, the node whose value the norm is), or why this is none."""
    total = root.args[0]
    if not is_call(total, aten.add.Tensor) or not isinstance(total.args[1], float):
        return "no constant is added to the mean"
    mean = total.args[0]
    if not is_call(mean, aten.mean.dim) or mean.args[1:] != ([-1], True):
        return "not the mean over the last dimension"
    square = mean.args[0]
    if not is_call(square, aten.pow.Tensor_Scalar) or square.args[1] != 2:
        return "not the mean of a square"
    x = square.args[0]
    scaled = _only_product(root)
    if scaled is None or x not in scaled.args:
        return "its input is not scaled by it"
    result = _only_product(scaled)
    if result is None:
        return "it has no weight"
    weight = result.args[1] if result.args[0] is scaled else result.args[0]
    if not isinstance(weight, fx.Node) or weight.meta["val"].shape != x.meta["val"].shape[-1:]:
        return "its weight is not a vector"
    return x, weight, total.args[1], result


def _only_product(node: fx.Node) -> Any:
    users = list(node.users)
    return users[0] if len(users) == 1 and is_call(users[0], aten.mul.Tensor) else None
