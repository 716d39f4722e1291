"""A router as a function of an ONNX model, of whatever kind: its own `choose`, exported.

Dimension letters: T tokens, E experts, K chosen per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mocomp.ir.specs import parse
from mocomp.lowering.exported_function import Shape, exported
from mocomp.routers import Router


def route_function(spec: str, shapes: Sequence[Shape], name: str, opset: int) -> ir.Function:
    """logits [T, E], tensors of the router -> ids [T, K] int64, weights [T, K], scores [T, E].

    The scores are what the K were taken as the largest of; where there is no such thing, the logits.
    """
    router: Router = parse("mocomp.routers", "Router", spec)
    inputs = ["logits", *(f"tensor{i}" for i in range(1, len(shapes)))]
    made = exported(lambda *given: router.choose(*given), shapes, inputs, ["ids", "weights"], name, opset)
    scores = ir.Node("", "Identity", [_scores(made, router.k)], num_outputs=1)
    scores.outputs[0].name = "scores"
    made.append(scores)
    made.outputs.append(scores.outputs[0])
    return made


def _scores(made: ir.Function, k: int) -> ir.Value:
    """What the TopK over k takes that `ids` come from, or else the logits."""
    waiting, seen = [made.outputs[0]], set()
    while waiting:
        node = waiting.pop(0).producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op_type == "TopK" and node.outputs[1].shape is not None and node.outputs[1].shape[-1] == k:
            assert node.inputs[0] is not None
            return node.inputs[0]
        waiting.extend(value for value in node.inputs if value is not None)
    return made.inputs[0]
