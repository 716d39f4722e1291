"""A router as a function of an ONNX model, of whatever kind: its own `choose`, exported.

Dimension letters: T tokens, E experts, K chosen per token.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import Tensor

from mocomp.ir.specs import parse
from mocomp.lowering.exported_function import Shape, exported
from mocomp.routers import Router


def route_function(spec: str, shapes: Sequence[Shape], name: str, opset: int) -> ir.Function:
    """logits [T, E], tensors of the router -> ids [T, K] int64, weights [T, K], scores [T, E].

    The scores are what the K were taken as the largest of; where there is no such thing, the logits.
    """
    router: Router = parse("mocomp.routers", "Router", spec)
    inputs = ["logits", *(f"tensor{i}" for i in range(1, len(shapes)))]

    def chosen(logits: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = router.choose(logits, *tensors)
        return (*found, logits.flatten(0, 1)) if router.per_sequence else found

    flat = ["logits_of_tokens"] if router.per_sequence else []
    made = exported(chosen, shapes, inputs, ["ids", "weights", *flat], name, opset)
    scores = ir.Node("", "Identity", [_scores(made, router.k)], num_outputs=1)
    scores.outputs[0].name = "scores"
    made.append(scores)
    made.outputs[2:] = scores.outputs
    return made


def _scores(made: ir.Function, k: int) -> ir.Value:
    """What the TopK over k takes that `ids` come from, or else the logits; a row for each token in either case."""
    waiting, seen = [made.outputs[0]], set()
    while waiting:
        node = waiting.pop(0).producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        shape = node.outputs[1].shape if node.op_type == "TopK" else None
        if shape is not None and shape.rank() == 2 and shape[-1] == k:
            assert node.inputs[0] is not None
            return node.inputs[0]
        waiting.extend(value for value in node.inputs if value is not None)
    return made.outputs[2] if len(made.outputs) > 2 else made.inputs[0]
