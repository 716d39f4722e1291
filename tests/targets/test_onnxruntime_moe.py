"""What `com.microsoft.MoE` computes on the CPU, and the one way of asking for it that ONNX Runtime gets wrong.

docs/decisions/0003-what-moe-computes.md rests on these.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional

from tests import checkpoints

HIDDEN, WIDTH, EXPERTS, CHOSEN = 64, 48, 8, 2
TOKENS = 12
DIMENSIONS = ["T", TOKENS, None]
"""How the token dimension of the input is declared: by name, by number, not at all."""
FIXED = """ONNX Runtime {version} is right where 1.31 was wrong: normalize_routing_weights=0 may be emitted again. Then
lowering/onnxruntime_ops.py can pass it for routers whose weights are not divided by their sum, passes/softmax_routing.py no
longer needs `_chosen_share` for them (four nodes a layer of OLMoE and Qwen2-MoE), and docs/decisions/0003 should say so."""


@dataclass(frozen=True)
class OneLayer:
    """x -> Mul by one -> (MatMul -> logits), MoE: the operator's input is another node's value, dead after it."""

    normalize: bool
    activation: str
    dimension: str | int | None

    def error(self) -> float:
        """The largest relative difference between ONNX Runtime and torch on random weights."""
        random = np.random.default_rng(0)
        rows = WIDTH if self.activation == "relu" else 2 * WIDTH
        shapes = {"gate": (HIDDEN, EXPERTS), "w_in": (EXPERTS, rows, HIDDEN), "w_out": (EXPERTS, HIDDEN, WIDTH)}
        weights = {name: random.standard_normal(shape, np.float32) / 8 for name, shape in shapes.items()}
        x = random.standard_normal((TOKENS, HIDDEN), np.float32)
        session = onnxruntime.InferenceSession(self.model(weights), providers=["CPUExecutionProvider"])
        actual = torch.from_numpy(session.run(None, {"x": x})[0])
        expected = self.expected(torch.from_numpy(x), **{name: torch.from_numpy(w) for name, w in weights.items()})
        return float((actual - expected).abs().max() / expected.abs().max())

    def expected(self, x: torch.Tensor, gate: torch.Tensor, w_in: torch.Tensor, w_out: torch.Tensor) -> torch.Tensor:
        values, ids = torch.softmax(x @ gate, -1).topk(CHOSEN, -1)
        values = values / values.sum(-1, keepdim=True) if self.normalize else values
        inner = torch.einsum("th,efh->etf", x, w_in)
        inner = functional.relu(inner) if self.activation == "relu" else functional.silu(inner[..., ::2]) * inner[..., 1::2]
        y = torch.einsum("etf,ehf->teh", inner, w_out)
        return (torch.zeros(TOKENS, EXPERTS).scatter(1, ids, values)[..., None] * y).sum(1)

    def model(self, weights: dict[str, np.ndarray]) -> bytes:
        swiglu = {"swiglu_fusion": 1, "activation_alpha": 1.0, "activation_beta": 0.0} if self.activation == "swiglu" else {}
        nodes = [
            helper.make_node("Mul", ["x", "one"], ["inner"]),
            helper.make_node("MatMul", ["inner", "gate"], ["logits"]),
            helper.make_node(
                "MoE", ["inner", "logits", "w_in", "", "w_out"], ["y"], domain="com.microsoft", k=CHOSEN,
                normalize_routing_weights=int(self.normalize), activation_type=self.activation, **swiglu,
            ),
            helper.make_node("Mul", ["y", "one"], ["out"]),
        ]  # fmt: skip
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, [self.dimension, HIDDEN])
        result = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
        constants = [numpy_helper.from_array(w, name) for name, w in (weights | {"one": np.ones(1, np.float32)}).items()]
        graph = helper.make_graph(nodes, "layer", [given], [result], constants)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()


@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_is_right_when_weights_are_divided_by_their_sum(activation, dimension):
    assert OneLayer(True, activation, dimension).error() < 1e-5


@pytest.mark.skipif(onnxruntime.__version__ < "1.31", reason="established on 1.31")
@pytest.mark.parametrize("activation", ["swiglu", "relu"])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_is_still_wrong_when_they_are_not_and_it_may_write_over_its_input(activation, dimension):
    """It clears its output, which is its input as soon as the two are known to be of one size, before it reads that."""
    error = OneLayer(False, activation, dimension).error()
    if dimension is None:
        assert error < 1e-5
    else:
        assert error > 0.5, FIXED.format(version=onnxruntime.__version__)


@pytest.mark.parametrize("family", checkpoints.MIXTURES)
def test_artifacts_never_ask_for_it(converted, family):
    nodes = [node for node in ir.load(converted(family).directory / "model.onnx").graph if node.op_type == "MoE"]
    assert nodes and all(node.attributes["normalize_routing_weights"].as_int() == 1 for node in nodes)
