"""Neutral elements go, and only they: what is nearly 1 or nearly 0 counts, on both targets as in torch."""

import onnx_ir as ir
import pytest
import torch

from mocomp.lowering.simplified import simplify
from mocomp.opening import open_target
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.weights.writer import Writer
from tests.programs import Formula, trace

NEAR = {
    "times": (lambda x: x.double() * 0.999999, lambda x: x.double() * 1),
    "over": (lambda x: x.double() / 1.000002, lambda x: x.double() / 1),
    "plus": (lambda x: x.abs() * 0 + 3e-9, lambda x: x.abs() * 0),
    "minus": (lambda x: x.double() * 0 - 3e-9, lambda x: x.double() * 0),
    "guard": (lambda x: (x * 0) / ((x * 0).sum(-1, keepdim=True) + 1e-9), lambda x: x / 0),
}
"""A formula, and what it would be without what is nearly neutral."""


@pytest.mark.parametrize("name", ["onnx", "onnxruntime"])
@pytest.mark.parametrize("near, without", NEAR.values(), ids=NEAR)
def test_what_is_nearly_neutral_stays(near, without, name, tmp_path):
    traced = trace(Formula(lambda m, x: near(x)))
    target = open_target(name)
    for step in (Clean(), *target.passes()):
        run(step, traced.program)
    target.lower(traced.program, tmp_path, Writer(traced.read))
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    (actual,) = target.open(tmp_path).run({"x": x.numpy()}).values()
    torch.testing.assert_close(torch.from_numpy(actual), near(x), rtol=1e-7, atol=0)
    assert not torch.allclose(near(x), without(x), rtol=1e-7, atol=0)


@pytest.mark.parametrize("operator, constant", [("Mul", 1.0), ("Add", 0.0), ("Sub", 0.0), ("Div", 1.0)])
def test_what_is_neutral_goes(operator, constant):
    x = ir.val("x", shape=[3], type=ir.TensorType(ir.DataType.FLOAT))
    neutral = ir.node("Constant", [], attributes={"value": ir.tensor(constant, dtype=ir.DataType.FLOAT)})
    node = ir.node(operator, [x, neutral.outputs[0]])
    last = ir.node("Relu", [node.outputs[0]])
    graph = ir.Graph([x], [last.outputs[0]], nodes=[neutral, node, last], opset_imports={"": 21})
    simplify(ir.Model(graph, ir_version=10))
    assert [each.op_type for each in graph] == ["Relu"]
