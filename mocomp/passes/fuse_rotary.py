"""Rotary position embeddings in one op."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, insert, is_call, size_of
from mocomp.passes import Changes, Numerics, Pass

aten = torch.ops.aten


@dataclass(frozen=True)
class FuseRotary(Pass):
    """x * cos + cat([-x[..., D/2:], x[..., :D/2]], -1) * sin   ->   mocomp::rotary(x, cos of each sequence, sin)

    where cos and sin are made of the same angles twice. Leaves interleaved pairs and angles of unequal halves.
    """

    name: ClassVar[str] = "fuse_rotary"
    numerics: ClassVar[Numerics] = Numerics.EXACT

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        for node in calls(program, aten.add.Tensor):
            found = _match(node)
            if found is None:
                continue
            if not all(_halves_are_equal(angle) for angle in found[1:]):
                changes.skipped.append(f"{node.name}: its angles are not the same twice")
                continue
            x, *angles = found
            angles = [_for_batch(program, angle, x, node) for angle in angles]
            fused = insert(program, node, MOCOMP.rotary.default, (x, *angles))
            node.replace_all_uses_with(fused)
            changes.count += 1
        program.graph.eliminate_dead_code()
        return changes


def _for_batch(program: Program, angle: fx.Node, x: fx.Node, before: fx.Node) -> fx.Node:
    """The angles once per sequence: positions that all sequences share come as a batch of one."""
    if angle.meta["val"].shape[0] == x.meta["val"].shape[0]:
        return angle
    batch = size_of(program, x, 0, before)
    return insert(program, before, aten.expand.default, (angle, [batch, -1, -1, -1]))


def _match(node: Any) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """(x, cos, sin) when `node` is the sum of a rotation."""
    if len(node.args) != 2 or not all(is_call(term, aten.mul.Tensor) for term in node.args):
        return None
    plain, turned = node.args
    if not all(isinstance(a, fx.Node) for a in (*plain.args, *turned.args)):
        return None
    x, cos = plain.args
    rotated, sin = turned.args
    if not is_call(rotated, aten.cat.default) or rotated.args[1:] != (-1,) or len(rotated.args[0]) != 2:
        return None
    if any(n.meta["val"].dim() != 4 for n in (x, cos, sin)) or cos.meta["val"].shape[1] != 1:
        return None
    negative, first = rotated.args[0]
    half = x.meta["val"].shape[-1] // 2
    if not is_call(negative, aten.neg.default) or not _is_slice(negative.args[0], x, half, None):
        return None
    return (x, cos, sin) if _is_slice(first, x, 0, half) else None


def _is_slice(node: Any, x: fx.Node, start: int, stop: int | None) -> bool:
    if not is_call(node, aten.slice.Tensor) or node.args[0] is not x or len(node.args) != 4:
        return False
    last = node.args[1] in (-1, x.meta["val"].dim() - 1)
    ends = node.args[3] == stop if stop is not None else node.args[3] >= x.meta["val"].shape[-1]
    return last and node.args[2] == start and ends


def _halves_are_equal(angle: fx.Node) -> bool:
    """Follow element-wise ops with constants down to cat([a, a], -1)."""
    while not is_call(angle, aten.cat.default):
        step = (aten.unsqueeze.default, aten.cos.default, aten.sin.default, aten.mul.Tensor, aten.to.dtype)
        if not is_call(angle, *step) or len(angle.all_input_nodes) != 1:
            return False
        angle = angle.all_input_nodes[0]
    parts = angle.args[0]
    return len(parts) == 2 and parts[0] is parts[1] and angle.args[1:] == (-1,)
