"""Layers that repeat: where a stack of them does, and the proof that two parts of a graph are the same but for names."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

KEPT = 3
"""Periods of a run that are worked on: what comes first may hold what all share, the last has another thing behind it."""
LONGEST_PERIOD = 8
SIZE = torch.ops.aten.sym_size.int


@dataclass(frozen=True)
class Run:
    """Layers `start` to `end` of a stack, in which each is like the one `period` before it.

    The first, the second and the last period are the ones that are worked on; those between them are stamped from the second.
    """

    start: int
    end: int
    period: int

    @property
    def first(self) -> range:
        """The layers of the first period."""
        return range(self.start, self.start + self.period)

    @property
    def second(self) -> range:
        """Those of the period that others are stamped from."""
        return range(self.first.stop, self.first.stop + self.period)

    @property
    def last(self) -> range:
        """Those of the last period."""
        return range(self.end - self.period, self.end)

    @property
    def between(self) -> list[range]:
        """Those of each period that is stamped, in order."""
        return [range(i, i + self.period) for i in range(self.second.stop, self.last.start, self.period)]

    @property
    def periods(self) -> list[range]:
        """Those of each period, in order."""
        return [self.first, self.second, *self.between, self.last]


def longest_run(kinds: Sequence[Hashable]) -> Run | None:
    """The run that leaves the most layers out of work, of layers of these kinds; None where there is nothing to leave out."""
    found = [run for period in range(1, LONGEST_PERIOD + 1) for run in _runs(kinds, period)]
    return max(found, key=lambda run: (len(run.between) * run.period, -run.period), default=None)


def _runs(kinds: Sequence[Hashable], period: int) -> list[Run]:
    runs, start = [], 0
    for i in range(period, len(kinds) + 1):
        if i < len(kinds) and kinds[i] == kinds[i - period]:
            continue
        count = (i - start) // period
        if count > KEPT:
            runs.append(Run(start, start + count * period, period))
        start = i - period + 1
    return runs


def stacks_of(graph: fx.Graph) -> list[str]:
    """The names of the stacks of layers that the nodes of a graph were traced in, such as `model.layers`."""
    paths = (path for node in graph.nodes for path, _ in (node.meta.get("nn_module_stack") or {}).values())
    found = (re.match(r"(.*?)\.\d+(\.|$)", path) for path in dict.fromkeys(paths))
    return list(dict.fromkeys(place[1] for place in found if place))


def layer_of(node: fx.Node, stack: str) -> int | None:
    """The number of the layer of a stack, such as `model.layers`, in whose forward a node was traced."""
    for path, _ in (node.meta.get("nn_module_stack") or {}).values():
        if path.startswith(f"{stack}."):
            number = path[len(stack) + 1 :].split(".")[0]
            return int(number) if number.isdigit() else None
    return None


def by_layer(graph: fx.Graph, stack: str) -> dict[int, list[fx.Node]]:
    """The nodes of each layer of a stack, in order of execution."""
    layers: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        number = layer_of(node, stack) if node.op not in ("placeholder", "output") else None
        if number is not None:
            layers.setdefault(number, []).append(node)
    return layers


@dataclass
class Match:
    """What in one part of a graph stands where in another: its nodes, its leaves (weights and inputs of its own), the `sizes`
    of these that are nodes elsewhere, and what it is `handed` by the part before."""

    nodes: dict[fx.Node, fx.Node]
    leaves: dict[fx.Node, fx.Node] = field(default_factory=dict)
    sizes: dict[fx.Node, fx.Node] = field(default_factory=dict)
    handed: dict[fx.Node, fx.Node] = field(default_factory=dict)


def match(one: list[fx.Node], other: list[fx.Node], before: set[fx.Node]) -> Match | None:
    """How `other`, which follows `before`, is the same as `one`; None where it is not.

    The same calls in the same order, with the same literals, of what stands in the same place, of what both share, of leaves
    of the same shape, or of what the part before hands on.
    """
    if len(one) != len(other):
        return None
    found = Match(dict(zip(one, other, strict=True)))
    inside = set(one) | set(other)
    for a, b in found.nodes.items():
        if (a.op, a.target) != (b.op, b.target):
            return None
        if not _same((a.args, a.kwargs), (b.args, b.kwargs), found, before, inside):
            return None
    pairs = (found.leaves, found.sizes, found.handed)
    return found if all(len(set(pair.values())) == len(pair) for pair in pairs) else None


def _same(a: Any, b: Any, found: Match, before: set[fx.Node], inside: set[fx.Node]) -> bool:
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        return _same_node(a, b, found, before, inside)
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y, found, before, inside) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], found, before, inside) for key in a)
    if isinstance(a, slice):
        return _same((a.start, a.stop, a.step), (b.start, b.stop, b.step), found, before, inside)
    return a == b or repr(a) == repr(b) == "nan"


def _same_node(a: fx.Node, b: fx.Node, found: Match, before: set[fx.Node], inside: set[fx.Node]) -> bool:
    if a in found.nodes:
        return found.nodes[a] is b
    if a is b:
        return a not in found.leaves and a not in found.handed
    if a.op == b.op == "placeholder":
        return found.leaves.setdefault(a, b) is b and alike(a, b)
    if a.target is b.target is SIZE and b not in before:
        return found.sizes.setdefault(a, b) is b and _same(a.args, b.args, found, before, inside)
    return b in before and a not in inside and found.handed.setdefault(a, b) is b


def alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether two leaves have the same type, and the same sizes where these are numbers."""
    x, y = a.meta["val"], b.meta["val"]
    if not (isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor)):
        return type(x) is type(y)
    sizes = zip(x.shape, y.shape, strict=False)
    return (x.dtype, x.dim()) == (y.dtype, y.dim()) and all(
        p == q if isinstance(p, int) or isinstance(q, int) else True for p, q in sizes
    )
