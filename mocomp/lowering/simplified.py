"""An ONNX graph without what computes nothing: constants folded, neutral elements, doubled casts and reshapes gone.

onnxscript's own list of rules takes 0.99999 for 1 and 1e-9 for 0, so a guard such as `x / (total + 1e-9)` is lost in it and
tokens that no expert takes become NaN. The rules for neutral elements are written again here, and match exactly.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as clean
from onnxscript import optimizer
from onnxscript.rewriter import RewritePass, pattern
from onnxscript.rewriter.rules import common as known

SMALL = 1024
"""Elements up to which a constant of the graph, such as a shape, is folded."""
ROUNDS = 2
ONE, ZERO = pattern.Constant(1, rel_tol=0.0, abs_tol=0.0), pattern.Constant(0, rel_tol=0.0, abs_tol=0.0)


def _identity(op, x, **_):
    return op.Identity(x)


NEUTRAL = (
    *pattern.RewriteRule(lambda op, x: op.Mul(x, ONE), _identity, name="x * 1").commute(),
    *pattern.RewriteRule(lambda op, x: op.Add(x, ZERO), _identity, name="x + 0").commute(),
    pattern.RewriteRule(lambda op, x: op.Sub(x, ZERO), _identity, name="x - 0"),
    pattern.RewriteRule(lambda op, x: op.Div(x, ONE), _identity, name="x / 1"),
)
RULES = (
    *NEUTRAL,
    known.dropout_zero_rule,
    known.dropout_inference_rule,
    known.two_reshapes_matmul_reshape_rule,
    known.one_reshape_matmul_reshape_rule,
    known.cast_constant_of_shape_rule,
    known.cast_constant_of_shape_without_value_rule,
    known.collapse_slice_rule,
    known.collapse_slice2_rule,
    known.materialize_reshape_shape_rule,
    known.successive_clip_relu_rule,
    known.successive_relu_clip_rule,
    known.successive_relu_rule,
    known.successive_clip_rule,
    known.cast_cast_rule,
    known.no_op_cast_rule,
    known.no_op_expand_rule,
    known.flatten_to_reshape_rule,  # before reshape_reshape_rule, which takes up what it makes
    known.reshape_reshape_rule,
    known.slice_split_rule,
    known.no_op_transpose_rule,
    known.transpose_transpose_rule,
    known.unsqueeze_unsqueeze_rule,
    known.squeeze_reshape_1d_rule,
    known.no_op_dynamic_scatter_nd_rule,
    known.no_op_static_scatter_nd_rule,
    known.normalize_pad_format_conv_rule,
    known.fuse_pad_into_conv_rule,
)


def simplify(model: ir.Model) -> None:
    """Simplify a model in place; its numbers stay what they are, and weights without data are left alone."""
    clean.InlinePass()(model)
    for _ in range(ROUNDS):
        folded = optimizer.fold_constants_ir(
            model, onnx_shape_inference=True, input_size_limit=SMALL, output_size_limit=4 * SMALL
        )
        rewritten = RewritePass(RULES)(model)
        clean.RemoveUnusedNodesPass()(model)
        if not (folded.modified or rewritten.modified):
            break
    for step in (
        clean.RemoveUnusedFunctionsPass(),
        clean.RemoveUnusedOpsetsPass(),
        clean.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        clean.LiftSubgraphInitializersToMainGraphPass(),
        clean.DeduplicateInitializersPass(),
        clean.CommonSubexpressionEliminationPass(),
        clean.OutputFixPass(),
        clean.NameFixPass(),
    ):
        step(model)
