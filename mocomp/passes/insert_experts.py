"""Dense feed-forward blocks, or the experts of a mixture, become modality-grouped mixtures."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.errors import MocompError
from mocomp.experts import Expert
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, inline, insert, scope, size_of
from mocomp.passes import Changes, Numerics, Pass
from mocomp.plans.blocks import find_blocks
from mocomp.plans.modality import POSITION
from mocomp.plans.plan import MixturePlan, ModelPlan
from mocomp.weights import recipes
from mocomp.weights.recipes import Recipe

aten = torch.ops.aten


@dataclass(frozen=True)
class InsertExperts(Pass):
    """act(x W1) W2   ->   route(where(allowed[modality], x Wr, -inf)), experts(x, ids, weights, bank)

    M groups of experts become one bank and M routers one router: a table [M, E] of booleans, looked up by the modality
    of each token, lets only the experts of its group be chosen. The modality is one lookup by the token's key, made once
    in the graph. `weights` holds the recipe of every tensor of the plan. Leaves blocks that the plan does not name.
    """

    name: ClassVar[str] = "insert_experts"
    numerics: ClassVar[Numerics] = Numerics.APPROXIMATES
    plan: ModelPlan = field(repr=False)
    weights: dict[str, Recipe] = field(repr=False)
    parameters: tuple[str, ...] = field(repr=False)

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        places: dict[str, Any] = {scope(node): node for node in calls(program, MOCOMP.experts.default)}
        if any(plan.replaces == "dense" for plan in self.plan.mixtures):
            places |= {block.enter: block for block in find_blocks(program, self.parameters)[0]}
        modality = _Modality(program, self.plan)
        for plan in self.plan.mixtures:
            if plan.enter not in places:
                raise MocompError(f"no {plan.replaces} {plan.enter} in the traced graph", where=self.name)
            place = places[plan.enter]
            x, y = (place.args[0], place) if plan.replaces == "experts" else (place.x, place.y)
            mine = {name: self.weights[f"{plan.enter}.{name}"] for name in plan.shapes()}
            _insert(program, plan, mine, modality, x, y)
            changes.count += 1
        program.graph.eliminate_dead_code()
        program.remove_dead_weights()
        return changes


class _Modality:
    """The modality of each token as a node [T] int64, made when the first mixture asks."""

    def __init__(self, program: Program, plan: ModelPlan):
        self.program, self.modality = program, plan.modality
        self._made: fx.Node | None = None

    def of(self, x: fx.Node, before: fx.Node) -> fx.Node:
        assert self.modality is not None
        if self._made is None:
            keys = self._keys(x, before)
            table = self.modality.table()
            node = _literal(self.program, "modality.table", table)
            keys = insert(self.program, before, aten.clamp.default, (keys, 0, len(table) - 1))
            self._made = insert(self.program, before, aten.index_select.default, (node, 0, keys))
        return self._made

    def _keys(self, x: fx.Node, before: fx.Node) -> fx.Node:
        """The key [T] of each token."""
        assert self.modality is not None
        program = self.program
        if self.modality.key != POSITION:
            keys = _placeholder(program, self.modality.key)
        elif "attention_mask" in program.inputs:
            keys = self._positions(before)
        else:
            return self._positions_in(x, before)
        return insert(program, before, aten.reshape.default, (keys, [-1]))

    def _positions(self, before: fx.Node) -> fx.Node:
        """[B, S]: how many tokens that are not padding stand before each in its sequence."""
        program = self.program
        mask = _placeholder(program, "attention_mask")
        counted = insert(program, before, aten.cumsum.default, (mask, 1))
        from_zero = insert(program, before, aten.sub.Tensor, (counted, 1))
        past = [i for i in program.inputs if i.startswith("past_key_values")]
        if not past:
            return from_zero
        start = size_of(program, _placeholder(program, past[0]), 2, before)
        return insert(program, before, aten.slice.Tensor, (from_zero, 1, start))

    def _positions_in(self, x: fx.Node, before: fx.Node) -> fx.Node:
        """[T], for x [B, S, H] of a model without tokens."""
        program = self.program
        batch, sequence = (size_of(program, x, dim, before) for dim in (0, 1))
        row = insert(program, before, aten.arange.default, (sequence,))
        return insert(program, before, aten.repeat.default, (row, [batch]))


def _insert(
    program: Program, plan: MixturePlan, weights: dict[str, Recipe], modality: _Modality, x: fx.Node, y: fx.Node
) -> None:
    def weight(name: str) -> fx.Node | None:
        return program.add_weight(f"{plan.enter}.{name}", weights[name]) if name in weights else None

    kind: Expert = plan.kind
    flat = x if x.meta["val"].dim() == 2 else insert(program, y, aten.reshape.default, (x, [-1, plan.hidden]))
    logits = insert(program, y, aten.linear.default, (flat, weight("router.weight"), weight("router.bias")))
    if plan.scoring == "neurons":
        logits = inline(program, y, lambda h: kind.inner(h).abs(), [logits])
    if (allowed := plan.allowed()) is not None:
        table = _literal(program, "modality.allowed", allowed)
        reachable = insert(program, y, aten.index_select.default, (table, 0, modality.of(x, y)))
        logits = insert(program, y, aten.where.ScalarOther, (reachable, logits, float("-inf")))
    tensors, router = [t for t in (weight("router.correction"),) if t is not None], plan.router
    if plan.auxiliary:
        router = plan.inference
        inner = insert(program, y, aten.linear.default, (flat, weight("router.aux_in")))
        inner = insert(program, y, aten.silu.default, (inner,))
        tensors = [insert(program, y, aten.linear.default, (inner, weight("router.aux_out")))]
    route = insert(program, y, MOCOMP.route.default, (logits, tensors, router))
    ids, shares = (insert(program, y, operator.getitem, (route, i)) for i in (0, 1))
    bank = [weight(f"experts.{name}") for name in ("w_in", "b_in", "w_out", "b_out")]
    mixed = insert(program, y, MOCOMP.experts.default, (flat, ids, shares, *bank, plan.expert))
    mixed.meta["nn_module_stack"] = {"mocomp": (f"{plan.enter}.experts", "mocomp.nn.Experts")}
    if plan.shared:
        inner = insert(program, y, aten.linear.default, (flat, weight("shared.w_in"), weight("shared.b_in")))
        inner = inline(program, y, lambda h: kind.inner(h), [inner])  # a bound method would be traced with its self
        always = insert(program, y, aten.linear.default, (inner, weight("shared.w_out"), weight("shared.b_out")))
        mixed = insert(program, y, aten.add.Tensor, (mixed, always))
    if x is not flat:
        shape = [size_of(program, x, dim, y) for dim in range(x.meta["val"].dim() - 1)]
        mixed = insert(program, y, aten.reshape.default, (mixed, [*shape, plan.hidden]))
    y.replace_all_uses_with(mixed)
    program.graph.erase_node(y)


def _placeholder(program: Program, name: str) -> fx.Node:
    """The node of an input, by its public name."""
    return next(node for given, node in zip(program.inputs, program.user_inputs(), strict=True) if given == name)


def _literal(program: Program, name: str, value: torch.Tensor) -> fx.Node:
    """A constant as a weight, shared by all that want the same one."""
    for node, known in program.weights():
        recipe = program.recipes.get(known)
        if known.startswith(name) and isinstance(recipe, recipes.Literal) and torch.equal(recipe.value, value):
            return node
    count = sum(known.startswith(name) for _, known in program.weights())
    return program.add_weight(f"{name}.{count}", recipes.literal(value))
