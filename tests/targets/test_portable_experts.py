"""The bodies of `mocomp.Experts` compute the mixture: every kind of expert, beside its definition in torch; faults are seen.

Dimension letters: T tokens, E experts, K chosen per token, H hidden, F expert width.
"""

import functools
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from mocomp.deployment import BODIES
from mocomp.experts import ACTIVATIONS, Expert
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.ir.specs import spell
from mocomp.lowering.branches import Turn, alone
from mocomp.lowering.call_layer import INPUTS, CallLayer
from mocomp.lowering.portable import GATHERED_TOKENS, turns_of
from mocomp.lowering.ways_session import WaySession, weights_for
from mocomp.registry import discover
from tests.laws.test_experts import samples

E, K, H, F = 6, 3, 10, 7
WAYS = ("dense", "gathered", "sorted")
KINDS = {
    **{f"ffn {name}": FFN(name) for name in ACTIVATIONS},
    **{f"glu {name}": GLU(name) for name in ACTIVATIONS},
    "gpt-oss": GLU("silu", 1.702, 1.0, 0.4),
}
REFUSED = ("Scatter", "Loop", "Scan", "NonZero", "CumSum", "TopK", "If")
"""Operators that TensorRT's parser refuses with these types or sizes, or that make shapes depend on data."""


def layer(kind: Expert, biases: tuple[str, ...] = ("b_in", "b_out"), experts: int = E, chosen: int = K) -> CallLayer:
    rows = 2 * F if kind.gated else F
    shapes = {"w_in": (experts, rows, H), "b_in": (experts, rows), "w_out": (experts, H, F), "b_out": (experts, H)}
    shapes = {name: shape for name, shape in shapes.items() if name.startswith("w") or name in biases}
    given = tuple(name if name in shapes or name in INPUTS[:3] else "" for name in INPUTS)
    types = tuple((name, "float") for name in shapes)
    return CallLayer(experts, chosen, H, F, spell(kind), given, tuple(shapes.items()), types)


def inputs(tokens: int, experts: int = E, chosen: int = K) -> dict[str, np.ndarray]:
    """One expert is liked by most, so that some have no token; weights do not sum to 1."""
    random = np.random.default_rng([tokens, chosen])
    liked = random.standard_normal((tokens, experts)) + 3 * (np.arange(experts) == 1)
    ids = np.argsort(-liked, -1)[:, :chosen].astype(np.int64)
    x, weights = random.standard_normal((tokens, H)), random.random((tokens, chosen)) + 0.1
    return {"x": x.astype(np.float32), "ids": np.ascontiguousarray(ids), "weights": weights.astype(np.float32)}


def defined(kind: Expert, given: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> np.ndarray:
    """The mixture by its definition, in float64."""
    tensors = [torch.from_numpy(given[name]) for name in INPUTS[:3]]
    bank = [torch.from_numpy(weights[name]).double() if name in weights else None for name in INPUTS[3:]]
    return kind.mixture(tensors[0].double(), tensors[1], tensors[2].double(), *bank).numpy()


def error(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape and actual.dtype == np.float32
    return float(np.abs(actual - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-9))


@functools.cache
def session(own: CallLayer, way: str) -> tuple[WaySession, dict[str, np.ndarray]]:
    weights = weights_for(own)
    return WaySession.on(own, (Turn(way),), weights), weights


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_expert(kind, way):
    run, weights = session(layer(KINDS[kind]), way)
    for tokens in (1, 5, 32):
        given = inputs(tokens)
        assert error(run.run(given), defined(KINDS[kind], given, weights)) < 3e-6


def test_no_kind_is_left_out():
    assert {type(kind) for kind in KINDS.values()} == set(discover("mocomp.experts", "Expert").values())
    assert {type(kind) for kind in samples().values()} == {type(kind) for kind in KINDS.values()}


@pytest.mark.parametrize("biases", [(), ("b_in",), ("b_out",)], ids=["none", "b_in", "b_out"])
@pytest.mark.parametrize("way", WAYS)
def test_any_bias_may_be_missing(way, biases):
    run, weights = session(layer(GLU(), biases), way)
    given = inputs(9)
    assert error(run.run(given), defined(GLU(), given, weights)) < 3e-6


@pytest.mark.parametrize("chosen", [1, 2, E])
@pytest.mark.parametrize("way", WAYS)
def test_any_number_of_experts_is_chosen(way, chosen):
    run, weights = session(layer(GLU(), chosen=chosen), way)
    for tokens in (1, 3, 8):
        given = inputs(tokens, chosen=chosen)
        assert error(run.run(given), defined(GLU(), given, weights)) < 3e-6


@pytest.mark.parametrize("way", WAYS)
def test_an_expert_may_be_chosen_twice(way):
    run, weights = session(layer(GLU()), way)
    given = inputs(4)
    given["ids"][0, 1] = given["ids"][0, 0]
    assert error(run.run(given), defined(GLU(), given, weights)) < 3e-6


@pytest.mark.parametrize("way", WAYS)
def test_no_tokens(way):
    assert session(layer(GLU()), way)[0].run(inputs(0)).shape == (0, H)


@pytest.mark.parametrize("way", WAYS)
def test_what_is_not_chosen_may_be_no_number(way):
    """Neither an expert that nobody chose, nor one that was chosen with weight 0."""
    own = layer(GLU())
    given, weights = inputs(7), weights_for(own)
    given["weights"][given["ids"] == 2] = 0.0
    given["ids"][given["ids"] == 3] = 4
    expected = defined(GLU(), given, weights)
    for name, array in weights.items():
        array[2] = np.nan
        array[3] = np.inf if name == "w_out" else np.nan
    assert error(WaySession.on(own, (Turn(way),), weights).run(given), expected) < 3e-6


def test_the_reference_evaluator_runs_every_body():
    """All of them in one graph, by the number of tokens, so that If is evaluated too."""
    own = layer(KINDS["gpt-oss"])
    model, weights = alone(own, (Turn("gathered", 2), Turn("sorted", 5), Turn("dense"))), weights_for(own)
    del model.graph.initializer[:]
    for name, shape in own.shapes:
        model.graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    onnx.checker.check_model(model, full_check=True)
    evaluator = ReferenceEvaluator(model)
    for tokens in (1, 3, 9):
        given = inputs(tokens)
        (y,) = evaluator.run(None, given | weights)
        assert error(np.asarray(y), defined(KINDS["gpt-oss"], given, weights)) < 3e-6


@pytest.mark.parametrize("way", ["dense", "gathered"])
def test_what_tensorrt_refuses_is_in_neither(way):
    model = alone(layer(GLU()), (Turn(way),))
    operators = {node.op_type for made in model.functions for node in made.node}
    assert not {name for name in operators if name.startswith(REFUSED)}


@pytest.mark.parametrize("way", WAYS)
def test_nodes_do_not_grow_with_experts(way):
    few, many = (alone(layer(GLU(), experts=experts), (Turn(way),)) for experts in (8, 128))
    assert [len(made.node) for made in few.functions] == [len(made.node) for made in many.functions]


def test_the_body_is_chosen_by_the_sizes():
    assert turns_of(layer(GLU()), "auto") == (Turn("gathered", GATHERED_TOKENS), Turn("sorted"))
    assert turns_of(layer(GLU(), chosen=E), "auto")[-1] == Turn("dense")
    assert turns_of(layer(GLU(), chosen=E), "auto", fixed=False) == (Turn("dense"),)
    for body in BODIES[1:]:
        assert turns_of(layer(GLU()), body) == (Turn(body),)


def test_large_experts_are_never_gathered():
    large = CallLayer(128, 8, 2048, 768, spell(GLU()), INPUTS, (), ())
    assert turns_of(large, "auto") == (Turn("sorted"),)


@dataclass(frozen=True)
class Fault:
    """What is wrong with the text of a body: the first such piece is replaced."""

    find: str
    instead: str
    ways: tuple[str, ...] = field(default=WAYS)


FIRST_ALONE = "nobody = Sub (flat, flat)\nw_out_g = Gather (w_out, nobody)"
FAULTS = {
    "weights are not multiplied": Fault("Mul (z_t, weight_column)", "Identity (z_t)", ("gathered", "sorted")),
    "weights are not multiplied, dense": Fault("Mul (z_d, share)", "Identity (z_d)", ("dense",)),
    "b_in is forgotten": Fault("Add (h_bare, b_in_", "Sub (h_bare, b_in_", ("dense", "gathered")),
    "b_out is forgotten": Fault("Add (z_rows, b_out_e)", "Identity (z_rows)", ("sorted",)),
    "rows stay sorted": Fault("ScatterElements (order, order, row_sorted)", "Identity (row_sorted)", ("sorted",)),
    "another expert's weights": Fault("w_out_g = Gather (w_out, flat)", FIRST_ALONE, ("gathered",)),
}


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, fault in FAULTS.items() for way in fault.ways])
def test_a_fault_in_a_body_is_seen(name, way, monkeypatch):
    from mocomp.lowering import branches

    sound, fault = branches.way(way), FAULTS[name]

    class Faulty(type(sound)):
        def body(self, layer, y):
            text = super().body(layer, y)
            assert fault.find in text
            return text.replace(fault.find, fault.instead)

    monkeypatch.setattr(branches, "way", lambda name: Faulty())
    own = layer(GLU())
    given, weights = inputs(11), weights_for(own)
    assert error(WaySession.on(own, (Turn(way),), weights).run(given), defined(GLU(), given, weights)) > 1e-2


class Swapped(GLU):
    """Gate and up the wrong way round."""

    name = ""

    def inner(self, h: torch.Tensor, axis: int = -1) -> torch.Tensor:
        return super().inner(torch.cat(h.chunk(2, axis)[::-1], axis), axis)


@pytest.mark.parametrize(
    "wrong", [Swapped(), GLU(limit=0.3), GLU(alpha=1.702), GLU("gelu"), GLU(beta=1.0)], ids=["swapped", *"abcd"]
)
@pytest.mark.parametrize("way", WAYS)
def test_another_expert_is_seen(way, wrong):
    """What the tests above would say if the exported `inner` were another's."""
    run, weights = session(layer(GLU()), way)
    given = inputs(11)
    assert error(run.run(given), defined(wrong, given, weights)) > 1e-2
