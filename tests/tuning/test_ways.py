"""Every way to run a mixture computes the mixture: beside its definition in torch, and beside each other.

Dimension letters: T tokens, E experts, K chosen per token, H hidden, F expert width.
"""

import numpy as np
import pytest
import torch

from mocomp.experts import Expert
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.ir.specs import spell
from mocomp.lowering.branches import Turn, alone, function, way
from mocomp.lowering.onnxruntime_ops import _attributes
from mocomp.lowering.operator_layer import OperatorLayer
from mocomp.lowering.ways import Layer, Way
from mocomp.lowering.ways_session import WaySession, weights_for
from mocomp.registry import discover

E, K, H, F = 6, 2, 16, 12
WAYS = ("dense", "fused", "gathered", "sorted")
KINDS = {
    "glu": GLU(),
    "gpt-oss": GLU("silu", 1.702, 1.0, 0.4),
    "gelu": FFN("gelu_tanh"),
    "relu": FFN("relu"),
    "silu": FFN("silu"),
    "identity": FFN("identity"),
}


def layer(kind: Expert, biases: bool = True, experts: int = E) -> OperatorLayer:
    rows = 2 * F if kind.gated else F
    shapes = {"w_in": (experts, rows, H), "w_out": (experts, H, F)}
    shapes |= {"b_in": (experts, rows), "b_out": (experts, H)} if biases else {}
    names = ("w_in", "b_in", "w_out", "b_out")
    attributes = {"k": K} | _attributes(spell(kind))
    text = ", ".join(f'{n} = "{v}"' if isinstance(v, str) else f"{n} = {v}" for n, v in attributes.items())
    return OperatorLayer(
        experts, K, H, F, spell(kind), ("x", "logits", *(n if n in shapes else "" for n in names)),
        tuple(shapes.items()), tuple((n, "float") for n in shapes), "MoE", text,
    )  # fmt: skip


def inputs(tokens: int, experts: int = E) -> dict[str, np.ndarray]:
    """Two experts are out of bounds for all (as for tokens of another modality); one is liked by most."""
    random = np.random.default_rng(tokens)
    logits = random.standard_normal((tokens, experts)).astype(np.float32)
    logits[:, 1:3], logits[:, 4] = -np.inf, logits[:, 4] + 2
    return {"x": random.standard_normal((tokens, H)).astype(np.float32), "logits": logits}


def defined(kind: Expert, given: dict[str, np.ndarray], weights: dict[str, np.ndarray]) -> np.ndarray:
    """The mixture by its definition; gate and up rows lie side by side in what the operator reads."""
    w = {name: torch.from_numpy(array) for name, array in weights.items()}
    if kind.gated:
        w |= {n: torch.cat([w[n][:, 0::2], w[n][:, 1::2]], 1) for n in ("w_in", "b_in") if n in w}
    top, ids = torch.from_numpy(given["logits"]).topk(K, -1)
    x, shares = torch.from_numpy(given["x"]), torch.softmax(top, -1)
    return kind.mixture(x, ids, shares, w["w_in"], w.get("b_in"), w["w_out"], w.get("b_out")).numpy()


def test_ways_are_all_known():
    assert tuple(name for name in discover("mocomp.lowering.ways", "Way") if way(name).takes(layer(GLU()))) == WAYS


@pytest.mark.parametrize("biases", [True, False], ids=["biases", "bare"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", WAYS)
def test_computes_the_mixture(name, kind, biases):
    own = layer(KINDS[kind], biases)
    weights = weights_for(own)
    session = WaySession.on(own, (Turn(name),), weights)
    for tokens in (1, 2, 33, 5):
        given = inputs(tokens)
        expected = defined(KINDS[kind], given, weights)
        assert np.abs(session.run(given) - expected).max() <= 2e-6 * np.abs(expected).max()


class Marked(Way):
    """A way that gives its number and nothing else."""

    def __init__(self, number: str):
        self.number = float(number)

    def takes(self, layer: Layer) -> bool:
        return True

    def body(self, layer: Layer, y: str) -> str:
        name = f"shape{int(self.number)}"
        return f"{name} = Shape (x)\n{y} = ConstantOfShape <value = float[1] {{{self.number}}}> ({name})"


@pytest.mark.parametrize("limits", [(4,), (1, 8, 20)])
def test_takes_turns_by_the_number_of_tokens(limits, monkeypatch):
    monkeypatch.setattr("mocomp.lowering.branches.way", Marked)
    own = layer(GLU())
    turns = tuple(Turn(str(i), limit) for i, limit in enumerate((*limits, 0)))
    session = WaySession.on(own, turns, weights_for(own))
    for tokens in sorted({count for limit in limits for count in (limit, limit + 1)}):
        assert np.unique(session.run(inputs(tokens))).tolist() == [sum(tokens > limit for limit in limits)]


def test_the_function_asks_for_each_limit_once():
    text = str(function(layer(GLU()), (Turn("fused", 4), Turn("sorted", 9), Turn("dense")), "Experts"))
    assert text.count('name: "few_tokens"') == 2 and text.count('op_type: "MoE"') == 1 and text.count('op_type: "Scan"') == 1


def nodes(experts: int, name: str) -> int:
    return len(function(layer(GLU(), experts=experts), (Turn(name),), "Experts").node)


@pytest.mark.parametrize("name", WAYS)
def test_nodes_do_not_grow_with_experts(name):
    assert nodes(6, name) == nodes(96, name)


def test_weights_are_not_in_the_graph():
    assert alone(layer(GLU(), experts=96), (Turn("sorted"),)).ByteSize() < 32_000
