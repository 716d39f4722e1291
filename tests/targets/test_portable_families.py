"""Every family that is tested converts to target onnx and is proven there, with no operator that is not of the standard."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from mocomp.lowering.onnx_session import MODEL
from mocomp.models.interface import Interface
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.verify.inputs import Case, arrays
from tests import checkpoints

SMALL = {"num_hidden_layers": 1}
CHANGES = {
    "gpt_oss": SMALL | {"layer_types": ["full_attention"]},
    "deepseek_v3": SMALL | {"first_k_dense_replace": 0},
    "glm4_moe": SMALL | {"first_k_dense_replace": 0},
    "ernie4_5_moe": {},
    "ernie4_5_vl_moe": {},
    "clip": {},
}
"""The changes to a family's config that make it smaller still; `SMALL` where nothing else is said."""


def given(interface: Interface) -> dict[str, np.ndarray]:
    """Two sequences of five tokens, nothing past."""
    past = {
        f"past_key_values.{i}.{part}": np.zeros((2, heads, 0, width), np.float32)
        for i, (heads, *widths) in enumerate(interface.past)
        for part, width in zip(("key", "value"), widths, strict=True)
    }
    return arrays(interface, Case("any", 2, 5), 0, None) | past


@pytest.mark.parametrize("family", checkpoints.FAMILIES)
def test_is_proven_without_contributed_operators(family, tmp_path):
    source, out = checkpoints.make(family, tmp_path / "source", **CHANGES.get(family, SMALL)), tmp_path / "out"
    report = convert(str(source), out, ConvertOptions(target="onnx"))
    assert report.parity.passed and report.parity.worst < 2e-5
    assert bool(report.artifact.mixtures) == bool(checkpoints.FAMILIES[family].experts)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    basic = onnxruntime.InferenceSession(out / MODEL, options, providers=["CPUExecutionProvider"])
    inputs = given(report.interface)
    expected = open_target("onnx").open(out).run(inputs)
    found = basic.run(list(expected), {value.name: inputs[value.name] for value in basic.get_inputs()})
    for actual, name in zip(found, expected, strict=True):
        np.testing.assert_allclose(actual, expected[name], rtol=1e-4, atol=1e-5 * np.abs(expected[name]).max())
    ran = ir.from_proto(onnx.load(tmp_path / "optimized.onnx", load_external_data=False))
    domains = {node.domain for graph in (ran.graph, *ran.functions.values()) for node in graph.all_nodes()}
    assert domains == {""}, "the runtime puts every function in line, and adds no operator of its own"
