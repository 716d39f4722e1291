"""A program without the layers that repeat, with seams where they were: what is translated in place of all of it.

Every period of a run is matched with the one before it first, so nothing is left out that is not the same but for names.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from itertools import compress, pairwise
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_structure

from mocomp.ir.program import Program
from mocomp.ir.repetition import SIZE, Match, Run, by_layer, longest_run, match, stacks_of


@torch.library.custom_op("mocomp::seam", mutates_args=())
def seam(x: Tensor, label: str) -> Tensor:
    """x, at a place of the graph that has to be found again."""
    return x.clone()


seam.register_fake(lambda x, label: torch.empty_like(x))


@dataclass
class Cut:
    """What was cut out of a stack, told by the names of the period that it is stamped from.

    `leaves` is for each period left out, and for the last, which is in the graph, {weight or input there: here}; `results` is
    {output of the program there: here} for each one left out, and `numbers` are those of their first layers.
    """

    label: str
    leaves: list[dict[str, str]]
    results: list[dict[str, str]]
    numbers: list[int]


def shortened(program: Program) -> tuple[Program, list[Cut]]:
    """A copy without what repeats, and what was cut out of it; the program itself where nothing can be."""
    runs = [found for stack in stacks_of(program.graph) if (found := _periods(program, stack)) is not None]
    if not runs:
        return program, []
    copy = program.copy()
    own = {node.name: node for node in copy.graph.nodes}
    cuts = [_cut(program, found, f"{i}", own) for i, found in enumerate(runs)]
    _drop_outputs(copy, {name for cut in cuts for period in cut.results for name in period.values()})
    for periods in runs:
        for node in reversed([node for nodes in periods.nodes[2:-1] for node in nodes]):
            copy.graph.erase_node(own[node.name])
    for node in copy.graph.find_nodes(op="call_function", target=SIZE):
        if not node.users:
            copy.graph.erase_node(node)
    _drop_inputs(copy, {name for cut in cuts for period in cut.leaves[:-1] for name in period.values()})
    copy.remove_dead_weights()
    _forget_structure(copy)
    copy.graph.lint()
    return copy, cuts


def _drop_outputs(program: Program, names: set[str]) -> None:
    specs, result = program.exported.graph_signature.output_specs, program.graph.output_node()
    kept = [name not in names for name in program.outputs]
    result.args = (tuple(compress(result.args[0], kept)),)  # type: ignore[arg-type]
    specs[:] = compress(specs, kept)
    program.outputs = list(compress(program.outputs, kept))


def _drop_inputs(program: Program, names: set[str]) -> None:
    """Those of these inputs that nobody reads."""
    specs = program.exported.graph_signature.input_specs
    named = dict(zip(program.inputs, program.user_inputs(), strict=True))
    gone = {name: node for name, node in named.items() if name in names and not node.users}
    places = {node.name for node in gone.values()}
    specs[:] = [spec for spec in specs if spec.arg.name not in places]
    program.inputs = [name for name in program.inputs if name not in gone]
    for node in gone.values():
        program.graph.erase_node(node)


def _forget_structure(program: Program) -> None:
    """torch retraces by how inputs and outputs were nested, and by examples; both are of the whole program."""
    program.exported.example_inputs = None
    call = program.exported.module_call_graph[0]
    assert call.signature is not None
    shapes = {"in_spec": tree_structure((tuple(program.inputs), {})), "out_spec": tree_structure(tuple(program.outputs))}
    call.signature = replace(call.signature, **shapes, forward_arg_names=None)


@dataclass
class _Periods:
    """The nodes of each period of a run, and how each follows from the one before it."""

    run: Run
    nodes: list[list[fx.Node]]
    steps: list[Match]

    @property
    def handed(self) -> list[int]:
        """The places, in a period, of what it hands to the next."""
        places = {node: i for i, node in enumerate(self.nodes[1])}
        return [places[node] for node in self.steps[1].handed.values()]


def _periods(program: Program, stack: str) -> _Periods | None:
    layers = by_layer(program.graph, stack)
    if sorted(layers) != list(range(len(layers))):
        return None
    run = longest_run([_kind(layers[i], layers) for i in range(len(layers))])
    if run is None:
        return None
    order = {node: i for i, node in enumerate(program.graph.nodes)}
    nodes = [sorted((node for i in period for node in layers[i]), key=order.__getitem__) for period in run.periods]
    steps = [match(one, other, set(one)) for one, other in pairwise(nodes)]
    found = [step for step in steps if step is not None]
    periods = _Periods(run, nodes, found)
    return periods if len(found) == len(steps) and _is_chain(periods) and _is_closed(program, periods) else None


def _kind(nodes: list[fx.Node], layers: dict[int, list[fx.Node]]) -> Hashable:
    """What a layer computes of what; told from others cheaply, since what is alike is matched in any case."""
    places = {node: i for i, node in enumerate(nodes)}
    elsewhere = {node for others in layers.values() for node in others}

    def name(node: fx.Node) -> Any:
        if node in places:
            return places[node]
        return "handed" if node in elsewhere else "leaf" if node.op == "placeholder" or node.target is SIZE else node.name

    return tuple(f"{node.target} {fx.map_arg((node.args, node.kwargs), name)}" for node in nodes)  # type: ignore[arg-type]


def _is_chain(periods: _Periods) -> bool:
    """Whether each period hands on what stands in the same places, to the one behind it only, and tensors only."""
    for k, step in enumerate(periods.steps):
        places = {node: i for i, node in enumerate(periods.nodes[k])}
        if sorted(places[node] for node in step.handed.values()) != sorted(periods.handed):
            return False
        if k and list(step.handed) != list(periods.steps[k - 1].handed.values()):
            return False
    return all(isinstance(node.meta["val"], Tensor) for node in periods.steps[1].handed)


def _is_closed(program: Program, periods: _Periods) -> bool:
    """Whether what is left out is read by the period behind it and by the results of the program only, once each."""
    results = list(program.graph.output_node().args[0])
    if len(set(results)) != len(results):
        return False
    places = [{i for i, node in enumerate(nodes) if node in set(results)} for nodes in periods.nodes]
    for k, nodes in enumerate(periods.nodes[1:-1], start=1):
        near = {*nodes, *periods.nodes[k + 1], program.graph.output_node()}
        if places[k] != places[1] or not all(near.issuperset(node.users) for node in nodes):
            return False
    return True


def _cut(program: Program, periods: _Periods, label: str, own: dict[str, fx.Node]) -> Cut:
    """Take the periods between the second and the last out of a copy, whose nodes are `own`, by name."""
    second, last = ([own[node.name] for node in periods.nodes[i]] for i in (1, -1))
    for k, (before, behind) in enumerate(periods.steps[1].handed.items()):
        _sew(own[before.name], second, f"{label} in {k}")
        counterpart = own[periods.nodes[-2][periods.nodes[1].index(behind)].name]
        _sew(own[behind.name], last, f"{label} out {k}", instead_of=counterpart)
    for k, node in enumerate(last):
        behind = [user for user in node.users if user not in set(last) and user.op != "output"]
        if behind and isinstance(node.meta.get("val"), Tensor):
            _sew(node, behind, f"{label} end {k}")
    return Cut(label, _leaves(program, periods), _results(program, periods), [period.start for period in periods.run.between])


def _leaves(program: Program, periods: _Periods) -> list[dict[str, str]]:
    """For each period behind the second, its leaves by those of the second in their places."""
    names: dict[fx.Node, str] = dict(program.weights())
    names |= zip(program.user_inputs(), program.inputs, strict=True)
    leaves, here = [], {node: node for node in periods.steps[1].leaves}
    for step in periods.steps[1:]:
        here = {node: step.leaves[now] for node, now in here.items()}
        leaves.append({names[node]: names[now] for node, now in here.items()})
    return leaves


def _results(program: Program, periods: _Periods) -> list[dict[str, str]]:
    """For each period left out, its results by those of the second period in their places."""
    results: Any = program.graph.output_node().args[0]
    public: dict[fx.Node, str] = dict(zip(results, program.outputs, strict=True))
    return [
        {public[a]: public[b] for a, b in zip(periods.nodes[1], nodes, strict=True) if a in public}
        for nodes in periods.nodes[2:-1]
    ]


def _sew(node: fx.Node, users: list[fx.Node], label: str, instead_of: fx.Node | None = None) -> None:
    with node.graph.inserting_after(node):
        sewn = node.graph.call_function(torch.ops.mocomp.seam.default, (node, label))
    sewn.meta = {key: node.meta[key] for key in ("val", "nn_module_stack") if key in node.meta}
    for user in users:
        user.replace_input_with(instead_of or node, sewn)
