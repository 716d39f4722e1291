"""A program run over many rows at once, a part of it at a time, so that one part's weights are in memory and no more.

Several streams go along together: stream 0 is the program as it is; in the others the visitor may give another value for a
node that it was called for, and what depends on that is computed for them apart. So a model can be quantised layer by
layer, each layer seeing what those before it really give, beside the float model that it is to be compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from mocomp import terminal
from mocomp.ir.program import Program
from mocomp.ir.rewrite import is_call, is_pure
from mocomp.weights.arithmetic import pick
from mocomp.weights.recipes import Reader

aten = torch.ops.aten
LIMIT = 256 << 20
"""Bytes of weights up to which nodes that are not visited are run together."""


@dataclass
class Call:
    """A visited node on one row, in one stream: its arguments, those that are weights left as nodes."""

    row: int
    args: tuple[Any, ...]


class Visitor(Protocol):
    """What is asked for the value of visited nodes."""

    def visit(self, node: fx.Node, calls: list[list[Call]]) -> list[list[Tensor]]:
        """calls[stream][row] -> values[stream][row]; a stream that has gone no way of its own yet has stream 0's calls."""
        ...

    def wants(self, row: int) -> bool:
        """Whether the output on a row is of interest; what only it needs is not run otherwise."""
        ...

    def finish(self, row: int, outputs: list[Tensor]) -> None:
        """The program's first output on a row, by stream."""
        ...


@dataclass
class _Part:
    """Nodes that are run together, or the one that is visited; `end` is the place after the last of them."""

    nodes: list[fx.Node] = field(default_factory=list)
    visited: fx.Node | None = None
    end: int = 0


class Walk:
    """`visited` are the nodes whose value is the visitor's to give; `streams` counts stream 0."""

    def __init__(self, program: Program, read: Reader, visited: set[fx.Node], streams: int = 1):
        self.program, self.read, self.streams = program, read, streams
        self.recipes = {node: program.recipes[name] for node, name in program.weights()}
        self.order = {node: i for i, node in enumerate(program.graph.nodes)}
        output = program.graph.output_node().args[0][0]  # type: ignore[index]
        self.output: fx.Node = output  # type: ignore[assignment]
        self.last_visited = max((self.order[node] for node in visited), default=-1)
        needed = self._needed(visited)
        self.last = {n: max((self.order[u] for u in n.users if u in needed), default=0) for n in needed}
        self.last[self.output] = len(self.order)
        self.parts = list(self._parts([n for n in self.order if n in needed and n.op == "call_function"], visited))

    @torch.no_grad()
    def run(self, rows: list[dict[str, Any]], visitor: Visitor, label: str = "layers") -> None:
        """All rows, each a value for every input of the program."""
        inputs = dict(zip(self.program.inputs, self.program.user_inputs(), strict=True))
        values: list[list[dict[fx.Node, Any]]] = [
            [{inputs[name]: row[name] for name in inputs}, *({} for _ in range(1, self.streams))] for row in rows
        ]
        with terminal.progress(label, len(self.parts), "parts") as advance:
            for part in self.parts:
                terminal.stop_if_interrupted()
                if part.visited is not None:
                    self._visit(part.visited, values, visitor)
                else:
                    self._together(part, values, visitor)
                advance(1)

    def _together(self, part: _Part, values: list[list[dict[fx.Node, Any]]], visitor: Visitor) -> None:
        weights = {node: self.recipes[node].evaluate(self.read) for node in self._weights_of(part.nodes)}
        behind_all = part.end > self.last_visited
        for number, row in enumerate(values):
            if behind_all and not visitor.wants(number):
                continue
            for stream, own in enumerate(row):
                for node in part.nodes:
                    if stream and not any(n in own for n in node.all_input_nodes):
                        continue  # as in stream 0
                    own[node] = self._value(node, _looking_in(own, row[0], weights))
            if self.output in part.nodes:
                visitor.finish(number, [own.get(self.output, row[0][self.output]) for own in row])
            for own in row:
                for node in [n for n in own if self.last.get(n, 0) < part.end or n is self.output]:
                    del own[node]

    def _visit(self, node: fx.Node, values: list[list[dict[fx.Node, Any]]], visitor: Visitor) -> None:
        calls = []
        for stream in range(self.streams):
            lookups = [_looking_in(row[stream], row[0], {n: n for n in self.recipes}) for row in values]
            calls.append([Call(i, fx.map_arg(node.args, look)) for i, look in enumerate(lookups)])
        for stream, given in enumerate(visitor.visit(node, calls)):
            for row, value in zip(values, given, strict=True):
                row[stream][node] = value
        if node is self.output:
            for number, row in enumerate(values):
                visitor.finish(number, [own.pop(node) for own in row])

    def _value(self, node: fx.Node, look: Callable[[fx.Node], Any]) -> Any:
        if is_call(node, aten.embedding.default) and node.args[0] in self.recipes:
            ids, where = look(node.args[1]).unique(return_inverse=True)  # type: ignore[arg-type]
            return pick(self.recipes[node.args[0]], 0, ids.tolist()).evaluate(self.read)[where]  # type: ignore[index]
        args, kwargs = fx.map_arg(node.args, look), fx.map_arg(node.kwargs, look)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _needed(self, visited: set[fx.Node]) -> set[fx.Node]:
        """What the first output and the visited nodes depend on: present keys and values are outputs that nobody wants.

        In-place ops are needed by whoever reads the memory that they write, which no argument of theirs says.
        """
        needed, waiting = set(), [self.output, *visited, *(n for n in self.order if not is_pure(n))]
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting.extend(node.all_input_nodes)
        return needed

    def _parts(self, nodes: list[fx.Node], visited: set[fx.Node]) -> Iterator[_Part]:
        part, size, held = _Part(), 0, set()
        for node in nodes:
            new = self._weights_of([node]) - held
            more = sum(self.recipes[n].nbytes for n in new)
            if part.nodes and (node in visited or size + more > LIMIT):
                yield part
                part, size, held = _Part(), 0, set()
                new = self._weights_of([node])
                more = sum(self.recipes[n].nbytes for n in new)
            if node in visited:
                yield _Part(visited=node, end=self.order[node] + 1)
                continue
            part.nodes.append(node)
            part.end, size, held = self.order[node] + 1, size + more, held | new
        if part.nodes:
            yield part

    def _weights_of(self, nodes: list[fx.Node]) -> set[fx.Node]:
        """The weights that nodes read whole."""
        return {
            n
            for node in nodes
            for n in node.all_input_nodes
            if n in self.recipes and not (is_call(node, aten.embedding.default) and n is node.args[0])
        }


def _looking_in(own: dict, shared: dict, weights: dict) -> Callable[[fx.Node], Any]:
    def look(node: fx.Node) -> Any:
        if node in own:
            return own[node]
        return weights[node] if node in weights else shared[node]

    return look
