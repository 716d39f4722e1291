"""Dense feed-forward blocks in a traced graph, found by what they compute and not by what they are called.

Dimension letters: H hidden, F width of the block.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from mocomp.experts import ACTIVATIONS, Expert
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, evaluate, is_call, scope
from mocomp.weights import recipes
from mocomp.weights.recipes import Recipe

aten = torch.ops.aten
LINEAR = aten.linear.default
VIEWS = (aten.view.default, aten.reshape.default)
LONGEST = 16
"""Nodes between the products of a block at most; an activation written out takes fewer than ten."""
ACTIVATED = [name for name in ACTIVATIONS if name not in ("identity", "tanh", "sigmoid")]
"""What feed-forward blocks have between their products. The others lie between those of adapters, poolers and gates."""


@dataclass(frozen=True)
class Dense:
    """The weights of a feed-forward block: w_in [F or 2F, H] (gate rows, then up rows), b_in, w_out [H, F], b_out [H]."""

    w_in: Recipe
    b_in: Recipe | None
    w_out: Recipe
    b_out: Recipe | None

    @property
    def hidden(self) -> int:
        return self.w_out.shape[0]

    @property
    def width(self) -> int:
        return self.w_out.shape[1]


@dataclass(frozen=True)
class Block:
    """A feed-forward block: it computes `expert` of `dense` on `x` and ends in node `y`.

    As modules: `enter` can be replaced by one that does it all when those in `leave` pass on what they are given.
    `parameters` are the names of its weights in the model.
    """

    enter: str
    leave: tuple[str, ...]
    x: fx.Node
    y: fx.Node
    expert: Expert
    dense: Dense
    parameters: tuple[str, ...]


def find_blocks(program: Program, parameters: Iterable[str]) -> tuple[list[Block], list[str]]:
    """(every feed-forward block in order, why others that looked like one are none).

    `parameters` are the names of all weights of the model. Shared experts, which read what the experts of a mixture
    read, are part of that mixture and no blocks.
    """
    names = set(parameters)
    in_mixtures = {unshaped(node.args[0]) for node in calls(program, MOCOMP.experts.default)}
    blocks: list[Block] = []
    skipped: list[str] = []
    for y in calls(program, LINEAR):
        found = _products(y)
        if found is None:
            continue
        inner, products = found
        if unshaped(products[0].args[0]) in in_mixtures:
            skipped.append(f"{scope(y)}: it belongs to a mixture that the model has")
            continue
        block = _block(program, y, inner, products, names)
        if isinstance(block, str):
            skipped.append(f"{scope(y)}: {block}")
        else:
            blocks.append(block)
    return blocks, skipped


def unshaped(node: Any) -> Any:
    """What a value was before it was given another shape."""
    while is_call(node, *VIEWS):
        node = node.args[0]
    return node


def _products(y: fx.Node) -> tuple[list[fx.Node], list[fx.Node]] | None:
    """(the pointwise nodes, the one or two products of one x) that lead into linear `y`, or None."""
    inner: list[fx.Node] = []
    products: list[fx.Node] = []
    waiting = [y.args[0]]
    while waiting:
        node = waiting.pop()
        if node in inner or node in products:
            continue
        if not isinstance(node, fx.Node) or node.op != "call_function" or len(inner) == LONGEST:
            return None
        if node.target is LINEAR:
            products.append(node)
            continue
        inner.append(node)
        waiting.extend(node.all_input_nodes)
    inside = {*inner, y}
    alike = len({id(product.args[0]) for product in products}) == 1 and len(products) <= 2
    closed = all(user in inside for node in (*inner, *products) for user in node.users)
    if not inner or not alike or not closed:
        return None
    order = {node: i for i, node in enumerate(y.graph.nodes)}
    return sorted(inner, key=order.__getitem__), sorted(products, key=order.__getitem__)


def _block(program: Program, y: fx.Node, inner: list[fx.Node], products: list[fx.Node], names: set[str]) -> Block | str:
    weights = [program.recipe_of(n) for p in (*products, y) for n in p.args[1:] if isinstance(n, fx.Node)]
    if any(w is None for w in weights):
        return "one of its products is not with a weight"
    known = _recognise(inner, products, y)
    if known is None:
        return "no known kind of expert computes what it does"
    expert, products, swapped = known
    w_in = recipes.concat([_weight(program, p, 1) for p in products], 0)  # type: ignore[misc]
    biases = [_weight(program, p, 2) for p in products]
    if any(b is None for b in biases) and any(b is not None for b in biases):
        return "only one of its two products has a bias"
    b_in = None if biases[0] is None else recipes.concat(biases, 0)  # type: ignore[arg-type]
    if swapped:
        w_in, b_in = _swapped(w_in), None if b_in is None else _swapped(b_in)
    dense = Dense(w_in, b_in, _weight(program, y, 1), _weight(program, y, 2))  # type: ignore[arg-type]
    place = _place(program, inner, products, y, names)
    if place is None:
        return "no modules hold it and nothing else, or they are used more than once"
    enter, leave = place
    inside = tuple(sorted(n for n in names if n.rpartition(".")[0] in {scope(p) for p in (*products, y)}))
    return Block(enter, leave, products[0].args[0], y, expert, dense, inside)  # type: ignore[arg-type]


def _weight(program: Program, product: fx.Node, i: int) -> Recipe | None:
    node = product.args[i] if len(product.args) > i else None
    return program.recipe_of(node) if isinstance(node, fx.Node) else None


def _swapped(recipe: Recipe) -> Recipe:
    half = recipe.shape[0] // 2
    return recipes.concat([recipes.slice_of(recipe, 0, half, 2 * half), recipes.slice_of(recipe, 0, 0, half)], 0)


def _recognise(inner: list[fx.Node], products: list[fx.Node], y: fx.Node) -> tuple[Expert, list[fx.Node], bool] | None:
    """(the kind of expert, its products gate first, whether a joint product has the up rows first), by running it."""
    draws = [_draw(inner, products, y, seed, spread) for seed, spread in ((0, 1.0), (1, 4.0))]
    if any(draw is None for draw in draws):
        return None
    orders = [products, products[::-1]] if len(products) == 2 else [products]
    for order in orders:
        for swapped in (False, True) if len(products) == 1 else (False,):
            for kind in _kinds(len(products)):
                if all(_agrees(kind, draw, order, swapped, y) for draw in draws):  # type: ignore[arg-type]
                    return kind, order, swapped
    return None


def _kinds(products: int) -> list[Expert]:
    gated: list[Expert] = [GLU(activation) for activation in ACTIVATED]
    plain: list[Expert] = [FFN(activation) for activation in ACTIVATED]
    return gated if products == 2 else [*plain, *gated]


def _draw(inner: list[fx.Node], products: list[fx.Node], y: fx.Node, seed: int, spread: float) -> dict | None:
    """The values of the nodes of a block on random results of its products, None when they cannot be run alone."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for product in products:
        width = product.meta["val"].shape[-1]
        shape = (2, 3, width) if product.meta["val"].dim() == 3 else (6, width)
        values[product] = spread * torch.randn(shape, generator=generator)
    try:
        return evaluate(inner, values)
    except Exception:  # ops that want other shapes, so no pointwise function
        return None


def _agrees(kind: Expert, draw: dict, order: list[fx.Node], swapped: bool, y: fx.Node) -> bool:
    h = torch.cat([draw[product] for product in order], -1)
    actual = draw[y.args[0]]
    if kind.gated:
        if h.shape[-1] != 2 * actual.shape[-1]:
            return False
        h = torch.cat(h.chunk(2, -1)[::-1], -1) if swapped else h
    expected = kind.inner(h)
    if (swapped and not kind.gated) or expected.shape != actual.shape:
        return False
    return bool((expected - actual).abs().max() <= 1e-6 * actual.abs().max())


def _place(
    program: Program, inner: list[fx.Node], products: list[fx.Node], y: fx.Node, names: set[str]
) -> tuple[str, tuple[str, ...]] | None:
    """(the module to replace, those to pass by): together they hold the block and nothing else, no weight and no op."""
    into, out, block = {scope(p) for p in products}, scope(y), {*inner, *products, y}
    whole = _common([*into, out])
    if whole and _holds_only(program, whole, {*into, out}, block, names):
        return whole, ()
    first = _common([*into])
    if not first or not _holds_only(program, first, into, block, names):
        return None
    while (wider := first.rpartition(".")[0]) and _holds_only(program, wider, into, block, names):
        first = wider  # what lies around the product, such as the activation, belongs to the block
    between = sorted({scope(node) for node in inner if not _is_inside(scope(node), first)})
    if not all(module and _holds_only(program, module, set(), block, names) for module in between):
        return None
    return first, (*between, out)


def _common(paths: list[str]) -> str:
    parts = [path.split(".") for path in paths]
    shared = []
    for words in zip(*parts, strict=False):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return ".".join(shared)


def _holds_only(program: Program, module: str, owners: set[str], block: set[fx.Node], names: set[str]) -> bool:
    """Whether all weights of a module are those of `owners`, and all that it computes is in `block`."""
    found = {n.rpartition(".")[0] for n in names if _is_inside(n, module)}
    computed = {n for n in program.graph.nodes if n.op == "call_function" and _is_inside(scope(n), module)}
    others = [n for n in computed - block if isinstance(n.meta.get("val"), torch.Tensor) and not is_call(n, *VIEWS)]
    return found == owners and not others


def _is_inside(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")
