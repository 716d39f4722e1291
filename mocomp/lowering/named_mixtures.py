"""The values around the mixtures of a graph of functions, named after their layers, so that parity can look at them."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from mocomp.lowering import portable


@dataclass(frozen=True)
class Named:
    """The values around a layer's experts, by name: x [T, H], ids [T, K], weights [T, K], scores [T, E], y [T, H]; `bank` names
    weights that are packed, `limits` are the numbers of tokens beyond which the experts run in another way."""

    layer: str
    x: str
    ids: str
    weights: str
    scores: str
    y: str
    k: int
    bank: tuple[str, ...]
    limits: tuple[int, ...]


def name_mixtures(model: ir.Model, layers: list[str], banks: dict[str, list[str]]) -> list[Named]:
    """Give the values around each mixture, in the order of `layers`, the name of its layer.

    Where the choice is not a known router's, nothing tells by which scores, and only outputs can be compared.
    """
    found = []
    for (call, layer), name in zip(portable.mixture_calls(model), layers, strict=True):
        x, ids, weights = call.inputs[:3]
        route = ids.producer() if ids is not None else None
        if route is None or x is None or ids is None or weights is None or not route.op_type.startswith("Route"):
            continue
        x.name = x.name if x.is_graph_input() or str(x.name).endswith("/x") else f"{name}/x"
        y = call.outputs[0]
        ids.name, weights.name = f"{name}/ids", f"{name}/weights"
        y.name = y.name if y.is_graph_output() else f"{name}/y"  # a block that is the whole model gives what the caller named
        scores = route.outputs[2]
        scores.name, scores.dtype = f"{name}/scores", ir.DataType.FLOAT
        named = Named(
            layer=name,
            x=str(x.name),
            ids=f"{name}/ids",
            weights=f"{name}/weights",
            scores=f"{name}/scores",
            y=str(y.name),
            k=layer.chosen,
            bank=tuple(banks.get(name, ())),
            limits=portable.limits_of(model, call),
        )
        found.append(named)
    return found
