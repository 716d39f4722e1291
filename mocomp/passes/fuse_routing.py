"""Recognise how a block routes, and say it in one op."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, constants, evaluate, insert, is_call, op_name, scope, subgraph_into
from mocomp.ir.specs import spell
from mocomp.ir.stages import Stage
from mocomp.passes import Changes, Numerics, Pass
from mocomp.routers import Evidence, Router, candidates

aten = torch.ops.aten
PRODUCTS = (aten.linear.default, aten.mm.default, aten.addmm.default, aten.matmul.default, aten.bmm.default)
DRAWS = ((0.0, 1.0), (0.0, 4.0), (0.0, 0.1), (4.0, 0.1), (-4.0, 0.1))
"""Means and standard deviations of the random logits on which a guess must agree; in the last two all are close."""


class NoMatch(Exception):
    """Why a routing subgraph was left as it is."""


@dataclass(frozen=True)
class FuseRouting(Pass):
    """softmax -> topk -> sum -> div   (and every other way to write it)   ->   mocomp::route(logits, kind)

    The subgraph between the router's product and the experts is cut out and run on random logits beside each kind
    of router that its ops suggest; the first that chooses the same experts with the same weights replaces it. So it
    does not matter how a family spells its routing. Weights that are off by a constant factor become route * factor,
    for `fold_router_scale`. Leaves routing that reads more than the logits and vectors of its own, and kinds unknown.
    """

    name: ClassVar[str] = "fuse_routing"
    gives: ClassVar[Stage] = Stage.ROUTED
    numerics: ClassVar[Numerics] = Numerics.REASSOCIATES

    def apply(self, program: Program) -> Changes:
        changes = Changes()
        for node in calls(program, MOCOMP.experts.default):
            if is_call(node.args[2], operator.getitem) and is_call(node.args[2].args[0], MOCOMP.route.default):
                continue
            try:
                _fuse(program, node)
                changes.count += 1
            except NoMatch as reason:
                changes.skipped.append(f"{scope(node) or node.name}: {reason}")
        program.graph.eliminate_dead_code()
        return changes


def _fuse(program: Program, node: fx.Node) -> None:
    ids, weights = node.args[1], node.args[2]
    inner, edge = subgraph_into([ids, weights], _is_edge)
    logits, tensors, sizes = _inputs(program, edge, experts=node.args[3].meta["val"].shape[0])
    evidence = _evidence(inner, logits, ids, tensors)
    router, factor = _recognise(evidence, inner, logits, tensors, sizes, ids, weights)
    route = insert(program, node, MOCOMP.route.default, (logits, tensors, spell(router)))
    new_ids, new_weights = (insert(program, node, operator.getitem, (route, i)) for i in (0, 1))
    if factor != 1.0:
        new_weights = insert(program, node, aten.mul.Tensor, (new_weights, factor))
    node.update_arg(1, new_ids)
    node.update_arg(2, new_weights)
    for dead in reversed(inner):  # in-place ops count as side effects, so dead code removal would keep them
        if not dead.users:
            program.graph.erase_node(dead)


def _is_edge(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return node.op == "placeholder" or node.target in PRODUCTS or isinstance(value, (torch.SymInt, int))


def _inputs(program: Program, edge: list[fx.Node], experts: int) -> tuple[fx.Node, list[fx.Node], list[fx.Node]]:
    """(logits, the router's own vectors, sizes) of a routing subgraph's edge."""
    sizes = [n for n in edge if not isinstance(n.meta["val"], torch.Tensor)]
    tensors = [n for n in edge if n not in sizes and program.recipe_of(n) is not None]
    logits = [n for n in edge if n not in sizes and n not in tensors]
    if len(logits) != 1 or logits[0].target not in PRODUCTS:
        names = ", ".join(n.name for n in logits) or "nothing"
        raise NoMatch(f"routing reads {names} where the product of one router was expected")
    shape = logits[0].meta["val"].shape
    if len(shape) != 2 or shape[1] != experts:
        raise NoMatch(f"router logits are {list(shape)}, expected [T, E={experts}]")
    return logits[0], tensors, sizes


def _evidence(inner: list[fx.Node], logits: fx.Node, ids: fx.Node, tensors: list[fx.Node]) -> Evidence:
    return Evidence(
        experts=logits.meta["val"].shape[1],
        k=ids.meta["val"].shape[1],
        tensors=tuple(tuple(t.meta["val"].shape) for t in tensors),
        ops=frozenset(op_name(n).strip("_") for n in inner),
        topks=tuple(n.args[1] for n in inner if op_name(n) == "topk"),
        numbers=frozenset(number for n in inner for number in constants(n)),
    )


def _recognise(
    evidence: Evidence,
    inner: list[fx.Node],
    logits: fx.Node,
    tensors: list[fx.Node],
    sizes: list[fx.Node],
    ids: fx.Node,
    weights: fx.Node,
) -> tuple[Router, float]:
    draws = []
    for seed, (mean, spread) in enumerate(DRAWS):
        values = _draw(seed, logits, tensors, sizes)
        values[logits] = (mean + spread * values[logits]).to(values[logits].dtype)
        known = evaluate(inner, {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in values.items()})
        shares = _shares(known[ids], known[weights], evidence.experts)
        draws.append((values[logits], [values[t] for t in tensors], shares))
    nearest = (float("inf"), "none")
    for guess in candidates(evidence):
        factors = [_factor(guess, *draw) for draw in draws]
        error = max(*(error for _, error in factors), *(abs(f - factors[0][0]) for f, _ in factors))
        if error < 1e-5:
            factor = factors[0][0]
            return guess, 1.0 if abs(factor - 1) < 1e-5 else float(f"{factor:.7g}")
        nearest = min(nearest, (error, spell(guess)))
    if nearest[1] == "none":
        raise NoMatch(f"no known router has {len(tensors)} tensors and is made of {', '.join(sorted(evidence.ops))}")
    raise NoMatch(f"no known router does this; the nearest, {nearest[1]}, is off by {nearest[0]:.1e}")


def _draw(seed: int, logits: fx.Node, tensors: list[fx.Node], sizes: list[fx.Node]) -> dict[fx.Node, Any]:
    """Random values for the inputs of a routing subgraph; every symbolic size is the product of its symbols' values."""
    generator = torch.Generator().manual_seed(seed)

    def size_of(size: Any) -> int:
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        symbols = sorted(expression.free_symbols, key=str)
        return int(expression.subs({symbol: 7 + 2 * i for i, symbol in enumerate(symbols)}))

    values: dict[fx.Node, Any] = {n: size_of(n.meta["val"]) for n in sizes}
    for node, scale in [(logits, 1.0), *((t, 0.3) for t in tensors)]:
        shape = [size_of(d) for d in node.meta["val"].shape]
        dtype = node.meta["val"].dtype
        values[node] = (scale * torch.randn(shape, generator=generator)).to(dtype)
    return values


def _factor(guess: Router, logits: torch.Tensor, tensors: list[torch.Tensor], shares: torch.Tensor) -> tuple[float, float]:
    """(f, error) such that the subgraph's weights are f times those of `guess`, up to error."""
    ids, weights = guess.choose(logits, *tensors)
    expected = _shares(ids, weights, shares.shape[1])
    if (expected > 0).ne(shares > 0).any():
        return 1.0, float((shares - expected).abs().max()) + 1.0
    factor = float(shares.sum() / expected.sum())
    return factor, float((shares - factor * expected).abs().max() / shares.abs().max())


def _shares(ids: torch.Tensor, weights: torch.Tensor, experts: int) -> torch.Tensor:
    """ids, weights [T, K] -> [T, E], so that the order of the K does not matter."""
    return torch.zeros(ids.shape[0], experts, dtype=torch.float64).scatter_add(1, ids, weights.double())
