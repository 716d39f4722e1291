"""What passes need to look at and to edit a graph."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from mocomp.ir import ops  # noqa: F401  (registers what MOCOMP names)
from mocomp.ir.program import Program

MOCOMP = torch.ops.mocomp


def calls(program: Program, *targets: Any) -> list[fx.Node]:
    """The nodes that call one of `targets`, in order of execution."""
    return [node for node in program.graph.nodes if node.op == "call_function" and node.target in targets]


def is_call(node: Any, *targets: Any) -> bool:
    """Whether `node`, which may be any argument, is a call of one of `targets`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def op_name(node: fx.Node) -> str:
    """`aten.softmax.int` -> `softmax`, for evidence and messages."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target).split(".")[1]
    return getattr(node.target, "__name__", str(node.target))


def scope(node: fx.Node) -> str:
    """The module of the model in whose forward the node was traced, such as `model.layers.3.mlp.experts`."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    return stack[-1][0] if stack else ""


def is_pure(node: fx.Node) -> bool:
    """Whether a call writes to none of its arguments and draws no random number."""
    return not _writes(node) and torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ())


def written(graph: fx.Graph) -> set[fx.Node]:
    """The values whose memory an in-place op writes to: its argument, what that may be a view of, and its other views."""
    memory: dict[fx.Node, fx.Node] = {}
    targets: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        memory[node] = memory[inputs[0]] if inputs and _may_view(node) else node
        if _writes(node):
            targets.update(memory[argument] for argument in inputs[:1])
    return {node for node in graph.nodes if memory[node] in targets}


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _may_view(node: fx.Node) -> bool:
    """Whether a call may give back the memory of its first argument, in whole or in part."""
    if node.target is operator.getitem:
        return True
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(result.alias_info is not None for result in schema.returns)


def subgraph_into(outputs: list[fx.Node], stop: Callable[[fx.Node], bool]) -> tuple[list[fx.Node], list[fx.Node]]:
    """The nodes that `outputs` depend on, up to those where `stop` says so: (inner nodes in order, the stops)."""
    inner: set[fx.Node] = set()
    edge: dict[fx.Node, None] = {}
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node in inner or node in edge:
            continue
        if stop(node):
            edge[node] = None
            continue
        inner.add(node)
        waiting.extend(node.all_input_nodes)
    return [node for node in outputs[0].graph.nodes if node in inner], list(edge)


def evaluate(nodes: list[fx.Node], values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """Run `nodes` in order on real tensors; `values` holds what they take from outside and is not changed."""
    known = dict(values)
    for node in nodes:
        args = fx.map_arg(node.args, lambda n: known[n])
        kwargs = fx.map_arg(node.kwargs, lambda n: known[n])
        known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known


def constants(node: fx.Node) -> Iterator[float]:
    """The plain numbers among a node's arguments."""
    found: list[float] = []
    fx.node.map_aggregate((node.args, node.kwargs), lambda a: found.append(a) if type(a) in (int, float) else None)
    yield from found


def insert(program: Program, before: fx.Node, target: Any, args: tuple, like: fx.Node | None = None) -> fx.Node:
    """A call before `before`; its fake value is computed from those of its arguments, its scope taken from there."""
    with program.graph.inserting_before(before):
        node = program.graph.call_function(target, args)
    node.meta["nn_module_stack"] = (like or before).meta.get("nn_module_stack", {})
    with program.fake_mode:  # also what reads no tensor, such as a range, has a fake value
        node.meta["val"] = target(*fx.map_arg(args, lambda n: n.meta["val"]))
    return node


def inline(program: Program, node: fx.Node, function: Callable[..., Any], tensors: list[fx.Node]) -> Any:
    """Replace a node by the torch ops of `function(*tensors)`, traced on fake values; returns the new result node(s)."""
    mode = torch._guards.detect_fake_mode([t.meta["val"] for t in tensors])
    with mode or torch.no_grad():
        traced = torch.fx.experimental.proxy_tensor.make_fx(function, tracing_mode="real")(*[t.meta["val"] for t in tensors])
    mapping = dict(zip(traced.graph.find_nodes(op="placeholder"), tensors, strict=True))
    with program.graph.inserting_before(node):
        for inner in traced.graph.nodes:
            if inner.op == "output":
                return fx.map_arg(inner.args[0], lambda n: mapping[n])
            if inner.op == "placeholder":
                continue
            copy = program.graph.node_copy(inner, lambda n: mapping[n])
            copy.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
            mapping[inner] = copy
    return None


def size_of(program: Program, node: fx.Node, dim: int, before: fx.Node) -> Any:
    """The size of a dimension for use as an argument: an int, or a node that holds it, an existing one if there is."""
    size = node.meta["val"].shape[dim]
    if isinstance(size, int):
        return size
    for other in program.graph.nodes:
        if other is before:
            break
        if isinstance(other.meta.get("val"), torch.SymInt) and other.meta["val"].node.expr == size.node.expr:
            return other
    return insert(program, before, torch.ops.aten.sym_size.int, (node, dim))
