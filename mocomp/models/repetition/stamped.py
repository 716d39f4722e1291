"""The layers that a trace left out, put into its graph: copies of the layers that it holds, with weights of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.export.graph_signature import OutputKind, TensorArgument

from mocomp.ir.program import Program
from mocomp.ir.repetition import Match, alike, by_layer, match
from mocomp.models.repetition.alike import Stack


def stamp(program: Program, stack: Stack) -> bool:
    """Put into a program the layers of a stack that `skipped` left out. False, and a program that is of no use, where the
    second and the last period of the trace are not the same but for names, or more hangs on them than the layer behind.

    A name that holds the number of a layer, of a weight, an input or an output, is taken to differ in that number only, and
    that is what the last period has to confirm.
    """
    return _Stamp(program, stack).apply()


class _Stamp:
    def __init__(self, program: Program, stack: Stack) -> None:
        self.program, self.stack, self.run = program, stack, stack.run
        layers = by_layer(program.graph, stack.name)
        order = {node: i for i, node in enumerate(program.graph.nodes)}
        self.second, self.last = (
            sorted((node for number in period for node in layers.get(number, [])), key=order.__getitem__)
            for period in (self.run.second, self.run.last)
        )
        self.names: dict[fx.Node, str] = dict(program.weights())
        self.names |= zip(program.user_inputs(), program.inputs, strict=True)
        self.nodes = {name: node for node, name in self.names.items()}
        results: Any = program.graph.output_node().args[0]
        self.results: dict[str, fx.Node] = dict(zip(program.outputs, results, strict=True))

    def apply(self) -> bool:
        found = match(self.second, self.last, set(self.second)) if self.second else None
        if found is None or not self._confirmed(found):
            return False
        copies, end = {node: node for node in self.second}, self.last[0]
        for period in self.run.between:
            leaves = self._leaves(found, period)
            if leaves is None:
                return False
            copies = self._copy(found, copies, leaves, period, end)
            self._hand_out(copies, period)
        for node in self.last:
            node.args = fx.map_arg(node.args, lambda n: copies.get(n, n))
            node.kwargs = fx.map_arg(node.kwargs, lambda n: copies.get(n, n))
        self._write_outputs()
        return True

    def renamed(self, name: str, period: range) -> str:
        """A name of the second period as it is in another; one without the number of a layer stays."""
        for old, new in zip(self.run.second, period, strict=True):
            if name.startswith(f"{self.stack.name}.{old}."):
                return f"{self.stack.name}.{new}{name[len(f'{self.stack.name}.{old}') :]}"
            kind, _, rest = name.partition(".")
            if kind in ("past_key_values", "present") and rest.startswith(f"{old}."):
                return f"{kind}.{new}.{rest.partition('.')[2]}"
        return name

    def _confirmed(self, found: Match) -> bool:
        """Whether the last period has the names that those of the second promise, and nothing else reads the second."""
        promised = all(self.renamed(self.names[a], self.run.last) == self.names[b] for a, b in found.leaves.items())
        results = {name: node for name, node in self.results.items() if node in found.nodes}
        promised &= all(self.results.get(self.renamed(name, self.run.last)) is found.nodes[n] for name, n in results.items())
        near = {*self.second, *self.last, self.program.graph.output_node()}
        return promised and all(near.issuperset(node.users) for node in self.second)

    def _leaves(self, found: Match, period: range) -> dict[fx.Node, fx.Node] | None:
        leaves = {}
        for node in found.leaves:
            own = self.nodes.get(self.renamed(self.names[node], period))
            if own is None or own is node or not alike(node, own):
                return None
            leaves[node] = own
            if self.names[own] in self.program.inputs:
                self._give_sizes(own, node)
        return leaves

    def _give_sizes(self, node: fx.Node, like: fx.Node) -> None:
        """An input that nothing read has symbols of its own for its sizes, which are those of the same input of a layer."""
        value = like.meta["val"]
        with self.program.fake_mode:
            node.meta["val"] = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)

    def _copy(
        self, found: Match, previous: dict[fx.Node, fx.Node], leaves: dict[fx.Node, fx.Node], period: range, end: fx.Node
    ) -> dict[fx.Node, fx.Node]:
        known = leaves | {a: previous[b] for a, b in found.handed.items()}
        copies: dict[fx.Node, fx.Node] = {}
        with self.program.graph.inserting_before(end):
            for node in found.sizes:
                known[node] = self.program.graph.node_copy(node, lambda n: known.get(n, n))
            for node in self.second:
                copy = self.program.graph.node_copy(node, lambda n: copies.get(n) or known.get(n, n))
                copy.meta["nn_module_stack"] = {
                    key: (self.renamed(f"{path}.", period)[:-1], kind)
                    for key, (path, kind) in (node.meta.get("nn_module_stack") or {}).items()
                }
                copies[node] = copy
        return copies

    def _hand_out(self, copies: dict[fx.Node, fx.Node], period: range) -> None:
        for name, node in list(self.results.items()):
            if node in copies:
                self.results[self.renamed(name, period)] = copies[node]

    def _write_outputs(self) -> None:
        results = [self.results[name] for name in self.program.outputs]
        self.program.graph.output_node().args = (tuple(results),)
        specs = [s for s in self.program.exported.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
        for spec, node in zip(specs, results, strict=True):
            spec.arg = TensorArgument(name=node.name)
