"""TensorRT's importers and their rules: every rule broken by a planted node that is named, and kept by its twin."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import pytest

from mocomp.capability import Gap
from mocomp.capability.tables import table
from mocomp.capability.tensorrt import graph_gaps
from mocomp.capability.tensorrt_rules import rule
from tests.capability.graphs import function, graph

IDS = "float[T, 8] x, int64[T, 2] ids"
TWO = {"inputs": IDS, "outputs": "float[T, 8] y"}
LOGITS = {"inputs": "float[T, 5000] x", "outputs": "float[T, k] y, int64[T, k] i"}
COUNTS = {"inputs": "int64[T] x", "outputs": "int64[T] y"}
ATTENTION = "float[1, 4, S, 8] q, float[1, 4, S, 8] k, float[1, 4, S, 8] v"
CACHED = {"inputs": f"{ATTENTION}, float[1, 4, P, 8] pk, float[1, 4, P, 8] pv", "outputs": "float[1, 4, S, 8] y"}
HEADS = {"inputs": "float[1, 4, S, 8] x, float[1, S, 4] c, int32[1, S] p", "outputs": "float[1, 4, S, 8] y"}
AXES = {"inputs": "float[T, 1, 8] x, int64[1] axes", "outputs": "float[T, 8] y"}
CACHE = {"inputs": "float[2, 4, 16, 8] x, float[2, 4, 1, 8] u, int64[2] at", "outputs": "float[2, 4, 16, 8] y"}
LOOP = {"inputs": "int64 n, bool go, float[2, 8] x", "outputs": "float[2, 8] last, float[N, 2, 8] y"}
MOE = "float[1, T, 8] x, {ids}[1, T, 2] ids, float[1, T, 2] s, float[4, 8, 6] g, float[4, 8, 6] u, float[4, 6, 8] d"
MIXTURE = {"inputs": MOE.format(ids="int32"), "outputs": "float[1, T, 8] y"}
BODY = "(int64 i, bool c, float[2, 8] v) => (bool c2, float[2, 8] w, float[2, 8] z)"
STAYS = "{ c2 = Identity(c) w = Add(v, v) z = Neg(v) }"
ENDS = "{ s = ReduceSum<keepdims=0>(v) h = ReduceMax<keepdims=0>(v) c2 = Less(s, h) w = Add(v, v) z = Neg(v) }"

Case = tuple[str, dict[str, Any], str, dict[str, Any], str]
PLANTED: dict[str, Case] = {
    "integer CumSum": (
        "a = Constant<value = int64 {0}>() y = CumSum(x, a)",
        COUNTS,
        "a = Constant<value = int64 {0}>() f = Cast<to=1>(x) s = CumSum(f, a) y = Cast<to=7>(s)",
        COUNTS,
        "INT64 data, and CumSum takes",
    ),
    "axis of CumSum": (
        "y = CumSum(x, a)",
        {"inputs": "float[T, 8] x, int64 a"},
        "a = Constant<value = int64 {1}>() y = CumSum(x, a)",
        {},
        "its axis a is computed",
    ),
    "ScatterND with reduction": ("y = ScatterND<reduction=\"add\">(x, ids, v)", {"inputs": f"{IDS}, float[T] v"},
                                 "y = ScatterND(x, ids, v)", {"inputs": f"{IDS}, float[T] v"}, "reduction add"),
    "TopK of 4000": (
        "k = Constant<value = int64[1] {4000}>() y, i = TopK(x, k)",
        LOGITS,
        "k = Constant<value = int64[1] {3839}>() y, i = TopK(x, k)",
        LOGITS,
        "K is 4000, and at most 3839",
    ),
    "TopK unsorted": (
        "k = Constant<value = int64[1] {8}>() y, i = TopK<sorted=0>(x, k)",
        LOGITS,
        "k = Constant<value = int64[1] {8}>() y, i = TopK(x, k)",
        LOGITS,
        "sorted is 0",
    ),
    "integer MatMul": (
        "y = MatMul(x, w)",
        {"inputs": "int32[T, 8] x, int32[8, 8] w", "outputs": "int32[T, 8] y"},
        "y = MatMul(x, w)",
        {"inputs": "float16[T, 8] x, float16[8, 8] w", "outputs": "float16[T, 8] y"},
        "INT32 data, and MatMul takes",
    ),
    "NonZero of truth values": (
        "y = NonZero(x)",
        {"inputs": "bool[T, 8] x", "outputs": "int64[2, N] y"},
        "y = Not(x)",
        {"inputs": "bool[T, 8] x", "outputs": "bool[T, 8] y"},
        "BOOL data, and NonZero takes",
    ),
    "Where of small integers": (
        "y = Where(c, x, x)",
        {"inputs": "bool[T, 8] c, int8[T, 8] x", "outputs": "int8[T, 8] y"},
        "y = Where(c, x, x)",
        {"inputs": "bool[T, 8] c, int32[T, 8] x", "outputs": "int32[T, 8] y"},
        "INT8 data, and Where takes",
    ),
    "contrib operator": ("y = com.microsoft.Gelu(x)", {}, "y = Gelu(x)", {}, "take it for the standard Gelu"),
    "contrib mixture": ("y = com.microsoft.MoE(x, x, x)", {}, "y = Relu(x)", {}, "com.microsoft.MoE is no operator"),
    "bitwise": ("y = BitwiseAnd(x, x)", COUNTS, "y = Add(x, x)", COUNTS, "does not support it"),
    "unheard of": ("y = LinearRegressor(x)", {}, "y = Relu(x)", {}, "no importer is known"),
    "function by the name of an operator": (
        "y = mocomp.Gelu(x)",
        {"functions": function("Gelu", "y = Relu(x)")},
        "y = mocomp.Experts(x)",
        {"functions": function("Experts", "y = Relu(x)")},
        "function mocomp.Gelu would be taken for the operator Gelu",
    ),
    "inside a function": (
        "y = mocomp.Experts(x)",
        COUNTS | {"functions": function("Experts", "a = Constant<value = int64 {0}>() y = CumSum(x, a)")},
        "y = mocomp.Experts(x)",
        COUNTS | {"functions": function("Experts", "y = Neg(x)")},
        "INT64 data, and CumSum takes",
    ),
    "Attention with a cache": ("y = Attention(q, k, v, , pk, pv)", CACHED, "y = Attention(q, k, v)", CACHED, "past_key"),
    "Attention with a cap": ("y = Attention<softcap=30.0>(q, k, v)", CACHED, "y = Attention<softcap=0.0>(q, k, v)", CACHED,
                             "softcap is not taken"),
    "Attention of 3 dimensions": (
        "y = Attention<q_num_heads=2, kv_num_heads=2>(x, x, x)",
        {"inputs": "float[1, T, 8] x", "outputs": "float[1, T, 8] y"},
        "y = Attention(x, x, x)",
        {"inputs": "float[1, 2, T, 8] x", "outputs": "float[1, 2, T, 8] y"},
        "Q, K, V: not of 4 dimensions",
    ),
    "present of Attention": (
        "y, n, m = Attention(q, k, v)",
        {"inputs": ATTENTION, "outputs": "float[1, 4, S, 8] y, float[1, 4, S, 8] n"},
        "y = Attention(q, k, v)",
        {"inputs": ATTENTION, "outputs": "float[1, 4, S, 8] y"},
        "outputs beside Y",
    ),
    "positions of RotaryEmbedding": (
        "y = RotaryEmbedding(x, c, c, p)", HEADS,
        "q = Cast<to=7>(p) y = RotaryEmbedding(x, c, c, q)", HEADS, "position_ids are INT32"),
    "axes of Squeeze": ("y = Squeeze(x, axes)", AXES, "a = Constant<value = int64[1] {1}>() y = Squeeze(x, a)", AXES,
                        "its axes axes is computed"),
    "axes left out": ("y = Squeeze(x)", AXES, "a = Constant<value = int64[1] {1}>() y = Squeeze(x, a)", AXES, "left out"),
    "axes of ReduceSum": ("y = ReduceSum<keepdims=0>(x, axes)", AXES,
                          "a = Constant<value = int64[1] {1}>() y = ReduceSum<keepdims=0>(x, a)", AXES, "is computed"),
    "depth of OneHot": (
        "y = OneHot(ids, d, v)",
        {"inputs": f"{IDS}, int64 d, float[2] v", "outputs": "float[T, 2, D] y"},
        "d = Constant<value = int64 {4}>() y = OneHot(ids, d, v)",
        {"inputs": f"{IDS}, float[2] v", "outputs": "float[T, 2, D] y"},
        "its depth d is computed",
    ),
    "mean of LayerNormalization": (
        "y, m = LayerNormalization(x, w)",
        {"inputs": "float[T, 8] x, float[8] w", "outputs": "float[T, 8] y, float[T, 1] m"},
        "y = LayerNormalization(x, w)",
        {"inputs": "float[T, 8] x, float[8] w"},
        "output m is used",
    ),
    "axis of TensorScatter": ("y = TensorScatter<axis=1>(x, u, at)", CACHE, "y = TensorScatter(x, u, at)", CACHE, "axis 1"),
    "branches of two ranks": (
        "y = If(c) <then_branch = a () => (float[8] p) { p = ReduceMax<keepdims=0>(x, z) },"
        " else_branch = b () => (float[1, 8] q) { q = ReduceMax<keepdims=1>(x, z) }>",
        {"inputs": "float[T, 8] x, bool c", "outputs": "float[N] y"},
        "y = If(c) <then_branch = a () => (float[8] p) { p = ReduceMax<keepdims=0>(x, z) },"
        " else_branch = b () => (float[8] q) { q = ReduceMin<keepdims=0>(x, z) }>",
        {"inputs": "float[T, 8] x, bool c", "outputs": "float[N] y"},
        "p and q have 1 and 2 dimensions",
    ),
    "trips that depend on data": (f"last, y = Loop(n, go, x) <body = b {BODY} {STAYS}>", LOOP,
        f"m = Constant<value = int64 {{4}}>() last, y = Loop(m, go, x) <body = b {BODY} {STAYS}>", LOOP,
        "the length of its scan outputs is not a constant"),
    "a loop that ends early": (f"m = Constant<value = int64 {{4}}>() last, y = Loop(m, go, x) <body = b {BODY} {ENDS}>", LOOP,
        f"m = Constant<value = int64 {{4}}>() last, y = Loop(m, go, x) <body = b {BODY} {STAYS}>", LOOP, "it may end early"),
    "a carried shape that grows": (
        "m = Constant<value = int64 {4}>() y = Loop(m, go, x) <body = b (int64 i, bool c, float[2, 8] v) =>"
        " (bool c2, float[4, 8] w) { c2 = Identity(c) w = Concat<axis=0>(v, v) }>",
        {"inputs": "bool go, float[2, 8] x", "outputs": "float[N, 8] y"},
        "m = Constant<value = int64 {4}>() y = Loop(m, go, x) <body = b (int64 i, bool c, float[2, 8] v) =>"
        " (bool c2, float[2, 8] w) { c2 = Identity(c) w = Add(v, v) }>",
        {"inputs": "bool go, float[2, 8] x", "outputs": "float[N, 8] y"},
        "does not keep its shape",
    ),
    "Scan of unknown length": (
        "y = Scan<num_scan_inputs=1, body = b (float[8] v) => (float[8] w) { w = Neg(v) }>(x)", {},
        "y = Scan<num_scan_inputs=1, body = b (float[8] v) => (float[8] w) { w = Neg(v) }>(x)",
        {"inputs": "float[3, 8] x", "outputs": "float[3, 8] y"}, "no fixed size"),
    "SwiGLU with a limit": ("y = mocomp.TRT_MoE<activation_type=1, swiglu_limit=7.0>(x, ids, s, g, u, d)", MIXTURE,
                            "y = mocomp.TRT_MoE<activation_type=1>(x, ids, s, g, u, d)", MIXTURE, "swiglu_limit 7.0"),
    "long ids of a mixture": (
        "y = mocomp.TRT_MoE(x, ids, s, g, u, d)", MIXTURE | {"inputs": MOE.format(ids="int64")},
        "y = mocomp.TRT_MoE(x, ids, s, g, u, d)", MIXTURE, "ids are INT64, not INT32"),
    "training": (
        "t = Constant<value = bool {1}>() y = Dropout(x, , t)", {}, "t = Constant<value = bool {0}>() y = Dropout(x, , t)", {},
        "training_mode"),
    "strings": ('s = Constant<value_string = "a">() y = Relu(x)', {}, "y = Relu(x)", {}, "STRING data, and Constant takes"),
}  # fmt: skip


def made(body: str, **options: Any) -> ir.Model:
    """A graph whose reductions have an axis z."""
    return graph(("z = Constant<value = int64[1] {0}>() " if "z)" in body else "") + body, **options)


def blocked(model: ir.Model, **where: str) -> list[Gap]:
    return [gap for gap in graph_gaps(model, **where) if gap.blocks]


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_named(name):
    body, options, _, _, reason = PLANTED[name]
    (gap,) = blocked(made(body, **options))
    assert reason in gap.why and gap.where


@pytest.mark.parametrize("name", PLANTED)
def test_its_twin_is_taken(name):
    _, _, body, options, _ = PLANTED[name]
    assert blocked(made(body, **options)) == []


def test_the_node_is_named():
    (gap,) = blocked(made(*PLANTED["integer CumSum"][:1], **COUNTS))
    assert gap.where == "y (CumSum)"


@pytest.mark.parametrize(
    ("opset", "version", "taken"), [(24, "11.4", True), (25, "11.4", False), (25, "11.5", True), (26, "11.5", False)]
)
def test_opsets(opset, version, taken):
    gaps = blocked(graph("y = Relu(x)", opset=opset), version=version)
    assert (gaps == []) == taken
    assert taken or (gaps[0].where == "the graph" and f"opset {opset}" in gaps[0].why)


@pytest.mark.parametrize(
    ("body", "since", "before"), [("y = Swish(x)", "11.0", "10.15"), (PLANTED["SwiGLU with a limit"][2], "11.0", "10.15")]
)
def test_what_came_later(body, since, before):
    options = MIXTURE if "TRT_MoE" in body else {}
    assert blocked(graph(body, **options), version=since) == []
    (gap,) = blocked(graph(body, **options), version=before)
    assert f"came with TensorRT {since}" in gap.why


def test_squeeze_without_axes_came_with_11_5():
    assert blocked(graph("y = Squeeze(x)", **AXES), version="11.5") == []
    (gap,) = blocked(graph("y = Squeeze(x)", **AXES), version="11.4")
    assert gap.instead == "say them", "which package and documents leave out is no remedy"


@pytest.mark.parametrize("step", ["h{n} = Identity(h{i})", "h{n} = Add(h{i}, h{i})"])
@pytest.mark.parametrize(("start", "taken"), [("axes", False), ("Constant", True)])
def test_a_long_way_to_a_constant(step, start, taken):
    """As deep as it may be, and as many ways as there may be."""
    first = "h0 = Identity(axes)" if start == "axes" else "h0 = Constant<value = int64[1] {1}>()"
    way = " ".join(step.format(n=i + 1, i=i) for i in range(1500))
    gaps = blocked(graph(f"{first} {way} y = Squeeze(x, h1500)", **AXES))
    assert [gap.where for gap in gaps] == ([] if taken else ["y (Squeeze)"])


def test_a_function_inside_a_function_is_mistaken_too():
    inside = function("Outer", "y = mocomp.Gelu(x)").replace('["" : 24]', '["" : 24, "mocomp" : 1]')
    made = graph("y = mocomp.Outer(x)", functions=f"{inside} {function('Gelu', 'y = Relu(x)')}")
    (gap,) = blocked(made)
    assert "mocomp.Gelu would be taken for the operator Gelu" in gap.why


def test_older_releases_and_unknown_gpus_are_not_guessed():
    (gap,) = graph_gaps(graph("y = Relu(x)"), version="10.9")
    assert gap.blocks and "before 10.15" in gap.why
    (gap,) = graph_gaps(graph("y = Relu(x)"), version="99.9")
    assert gap.blocks and "after 11.5" in gap.why
    (gap,) = graph_gaps(graph("y = Relu(x)"), gpu="sm_42")
    assert gap.blocks and gap.where == "sm_42"


@pytest.mark.parametrize(("kind", "gpu", "taken"), [
    ("bfloat16", "sm_75", False), ("bfloat16", "sm_80", True), ("float16", "sm_75", True),
    ("float8e4m3fn", "sm_80", False), ("float8e4m3fn", "sm_89", True), ("float4e2m1", "sm_90", False),
    ("float4e2m1", "sm_100", True), ("int4", "sm_75", False), ("int4", "sm_80", True), ("int8", "sm_75", True),
])  # fmt: skip
def test_types_of_gpus(kind, gpu, taken):
    if "16" in kind:
        model = graph("y = Relu(x)", f"{kind}[T, 8] x", f"{kind}[T, 8] y")
    else:
        model = graph("y = Relu(x)")
        codes = ir.Value(name="w", type=ir.TensorType(ir.DataType[kind.upper()]), shape=ir.Shape([8, 8]))
        model.graph.initializers.add(codes)
        scale = ir.Value(name="s", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([]))
        model.graph.initializers.add(scale)
        model.graph.append(ir.node("DequantizeLinear", [codes, scale], {"output_dtype": 1}))
    gaps = blocked(model, gpu=gpu)
    assert (gaps == []) == taken, gaps
    assert taken or f"{gpu} " in gaps[0].why


@pytest.mark.parametrize(("gpu", "taken"), [("sm_90", False), ("sm_100", True), ("sm_110", True), ("sm_120", False)])
def test_gpus_of_the_mixture_layer(gpu, taken):
    gaps = blocked(graph("y = mocomp.TRT_MoE<activation_type=1>(x, ids, s, g, u, d)", **MIXTURE), gpu=gpu)
    assert (gaps == []) == taken
    assert taken or f"does not run on {gpu}" in gaps[0].why


def test_a_function_that_tensorrt_has_is_not_looked_into():
    inside = '<domain: "mocomp", opset_import: ["" : 24]> TRT_MoE (x, ids, s, g, u, d) => (y) { y = BitwiseAnd(ids, ids) }'
    assert blocked(graph("y = mocomp.TRT_MoE(x, ids, s, g, u, d)", **MIXTURE, functions=inside)) == []
    other = inside.replace("TRT_MoE", "Experts")
    assert "does not support it" in blocked(graph("y = mocomp.Experts(x, ids, s, g, u, d)", **MIXTURE, functions=other))[0].why


def test_doubles_are_rounded_aloud():
    (gap,) = graph_gaps(graph("y = Relu(x)", "double[T, 8] x", "double[T, 8] y"))
    assert not gap.blocks and "rounds to FLOAT" in gap.why


def test_what_depends_on_data_is_told():
    (gap,) = graph_gaps(graph("y = NonZero(x)", outputs="int64[2, N] y"))
    assert not gap.blocks and "depends on data" in gap.why


def test_one_reason_is_told_once():
    (gap,) = graph_gaps(graph("a = BitwiseNot(x) b = BitwiseNot(a) y = BitwiseNot(b)", **COUNTS))
    assert gap.where == "a (BitwiseNot) and 2 more"


def test_the_model_stays_as_it_was():
    model = graph("y = mocomp.Experts(x)", functions=function("Experts", "y = Relu(x)"))
    before = ir.to_proto(model).SerializeToString()
    graph_gaps(model)
    assert ir.to_proto(model).SerializeToString() == before


def test_every_restriction_is_checked_or_told():
    known = table("tensorrt")
    assert set(known["restrictions"]) == set(known["unchecked"]) | (rule.operators() & set(known["restrictions"]))
    (gap,) = graph_gaps(graph("y = GRU(x, x, x)", "float[T, 2, 8] x", "float[T, 1, 2, 8] y"))
    assert not gap.blocks and "same activations" in gap.why
