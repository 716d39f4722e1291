"""Mixtures of a lowered model, replaced by functions that run them in the ways that were chosen."""

from __future__ import annotations

from collections import Counter
from typing import Any

import onnx_ir as ir

from mocomp.experts import Expert
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.ir.specs import spell
from mocomp.lowering.branches import DOMAIN, Turn, function
from mocomp.lowering.onnxruntime_ops import ACTIVATIONS
from mocomp.lowering.operator_layer import OperatorLayer
from mocomp.lowering.operator_layout import MIXTURES

INPUTS = {
    "MoE": ("x", "logits", "w_in", "b_in", "w_out", "b_out"),
    "QMoE": ("x", "logits", "w_in", "s_in", "b_in", "w_out", "s_out", "b_out", "w_up", "s_up", "b_up", "z_in", "z_out"),
}
Choice = tuple[Turn, ...]


def mixture_nodes(model: ir.Model) -> list[ir.Node]:
    """The fused mixtures of a model, in their order."""
    return [node for node in model.graph if node.op_type in MIXTURES]


def layer_of(node: ir.Node) -> OperatorLayer:
    """What a fused mixture shares with others that may run the same way."""
    names = INPUTS[node.op_type]
    given = tuple(names[i] if value is not None else "" for i, value in enumerate(node.inputs))
    weights: dict[str, ir.Value] = {
        name: value
        for name, value in zip(given, node.inputs, strict=True)
        if name not in ("", "x", "logits") and value is not None
    }
    shapes = {name: tuple(int(size) for size in value.shape or ()) for name, value in weights.items()}
    of_bits = node.attributes["expert_weight_bits"].as_int() if node.op_type == "QMoE" else 32
    rows, hidden = shapes["w_in"][1], shapes["w_out"][1]
    gated = "swiglu_fusion" in node.attributes
    return OperatorLayer(
        operator=node.op_type,
        experts=shapes["w_in"][0],
        chosen=node.attributes["k"].as_int(),
        hidden=hidden,
        width=rows // 2 if gated else rows,
        expert=spell(_expert(node)),
        inputs=given,
        shapes=tuple(shapes.items()),
        types=tuple((name, value.dtype.name.lower()) for name, value in weights.items() if value.dtype is not None),
        attributes=", ".join(f"{name} = {_text(attribute.value)}" for name, attribute in node.attributes.items()),
        bits=of_bits,
    )


def _expert(node: ir.Node) -> Expert:
    """The kind of expert that a node's attributes mean."""
    said = {name: attribute.value for name, attribute in node.attributes.items()}
    if "swiglu_fusion" in said:
        return GLU("silu", said["activation_alpha"], said["activation_beta"], said.get("swiglu_limit", 0.0))
    return FFN({operators: name for name, operators in ACTIVATIONS.items()}[said["activation_type"]])


def apply(model: ir.Model, chosen: list[tuple[ir.Node, OperatorLayer, Choice]]) -> None:
    """Replace each of these nodes by a call of a function; layers of one shape and one choice share it."""
    names: dict[tuple[OperatorLayer, Choice], str] = {}
    for node, layer, turns in chosen:
        name = names.setdefault((layer, turns), f"Tuned{len(names) + 1}")
        call = ir.Node(DOMAIN, name, [value for value in node.inputs if value is not None], num_outputs=1)
        y, old = call.outputs[0], node.outputs[0]
        y.name, y.type, y.shape = old.name, old.type, old.shape
        model.graph.insert_before(node, call)
        old.name = None
        old.replace_all_uses_with(y, replace_graph_outputs=True)
        model.graph.remove(node, safe=True)
    for (layer, turns), name in names.items():
        made = ir.serde.deserialize_function(function(layer, turns, name))
        model.functions[made.identifier()] = made
    if names:
        model.opset_imports[DOMAIN] = 1


def operators(model: ir.Model) -> dict[str, int]:
    """How many nodes of each kind there are, those in functions counted once."""
    found = Counter(node.op_type for graph in (model.graph, *model.functions.values()) for node in graph.all_nodes())
    return dict(found.most_common())


def fused_node(model: ir.Model, node: ir.Node) -> ir.Node:
    """A fused mixture as it stood before it was replaced: what tells how its weights are packed."""
    if node.domain != DOMAIN:
        return node
    made = model.functions[node.op_identifier()]
    inner = next(n for n in made.all_nodes() if n.op_type in MIXTURES)
    given = {value.name: own for value, own in zip(made.inputs, node.inputs, strict=True)}
    inputs = [given[value.name] if value is not None else None for value in inner.inputs]
    return ir.Node(inner.domain, inner.op_type, inputs, list(inner.attributes.values()))


def _text(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
