"""Parts of a trace that stood under `torch.no_grad()` or `torch.autocast`, which torch.export keeps as graphs of their own."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from mocomp.errors import Unsupported

GRADIENTS, AUTOCAST = "wrap_with_set_grad_enabled", "wrap_with_autocast"


def inline(module: fx.GraphModule) -> None:
    """Put the graphs of such parts into the graph that calls them, where a context changes nothing at inference.

    Raises Unsupported for an autocast that is enabled: its numbers are rounded to 16 bits.
    """
    for node in [node for node in module.graph.nodes if getattr(node.target, "__name__", "") in (GRADIENTS, AUTOCAST)]:
        _inline(module, node)
    module.graph.eliminate_dead_code()


def _inline(module: fx.GraphModule, node: fx.Node) -> None:
    at = next(i for i, argument in enumerate(node.args) if isinstance(argument, fx.Node) and argument.op == "get_attr")
    if node.target.__name__ == AUTOCAST and node.args[2]:  # type: ignore[union-attr]
        raise Unsupported("its forward computes under torch.autocast, in 16 bits", fix="Convert it without.")
    holder: Any = node.args[at]
    inner = getattr(module, str(holder.target))
    inline(inner)
    known: dict[fx.Node, Any] = dict(zip(inner.graph.find_nodes(op="placeholder"), node.args[at + 1 :], strict=True))
    for constant in inner.graph.find_nodes(op="get_attr"):
        setattr(module, f"{holder.target}_{constant.target}", getattr(inner, str(constant.target)))
        with module.graph.inserting_before(node):
            known[constant] = module.graph.get_attr(f"{holder.target}_{constant.target}")
    with module.graph.inserting_before(node):
        for one in inner.graph.nodes:
            if one.op not in ("placeholder", "output", "get_attr"):
                known[one] = module.graph.node_copy(one, lambda argument: known[argument])
    made = fx.map_arg(inner.graph.output_node().args[0], lambda argument: known[argument])
    _replace(node, made)
    module.graph.erase_node(node)


def _replace(node: fx.Node, made: Any) -> None:
    """What reads the results of a call reads those of the nodes that came in its place."""
    if isinstance(made, fx.Node):
        node.replace_all_uses_with(made)
        return
    for user in list(node.users):
        if user.target is not operator.getitem:
            raise Unsupported(f"{torch.typename(node.target)} is read as a whole")
        user.replace_all_uses_with(made[user.args[1]])  # type: ignore[index]
        node.graph.erase_node(user)
