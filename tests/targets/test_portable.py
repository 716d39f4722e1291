"""Target onnx: routers and mixtures as functions, at the opset that is asked for; what cannot be is refused.

Dimension letters: T tokens, E experts, K chosen per token.
"""

import dataclasses
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from mocomp.commands.parity import parity
from mocomp.deployment import Deployment
from mocomp.errors import Usage
from mocomp.ir.specs import spell
from mocomp.lowering.onnx_session import MODEL, load, replace
from mocomp.lowering.route_function import route_function
from mocomp.models.interface import Interface
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.registry import discover
from mocomp.report import Report
from mocomp.routers.auxiliary import Auxiliary
from mocomp.routers.expert_choice import ExpertChoice
from mocomp.routers.sigmoid_topk import SigmoidTopK
from mocomp.routers.softmax_bias_topk import SoftmaxBiasTopK
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.routers.sparse_mixer import SparseMixer
from mocomp.routers.topk_softmax import TopKSoftmax
from mocomp.routers.topk_uniform import TopKUniform
from mocomp.verify.inputs import Case, arrays
from tests import checkpoints
from tests.routers.test_lowering import KINDS, RUN_ELSEWHERE

SMALL = {"num_hidden_layers": 1}
SMALL_OF = {"gpt_oss": SMALL | {"layer_types": ["full_attention"]}}
GRAPH = (("weights", "none"), ("parity", "off"))
OLDER = ("qwen3_moe", "gpt_oss", "bert")
"""Families that are converted to opset 21 as well: attention with a mask, with sinks, of an encoder."""


class Made(NamedTuple):
    directory: Path
    report: Report


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """made(family, options as pairs): the proven artifact of a tiny checkpoint."""

    @cache
    def convert_once(family: str, *options: tuple[str, object]) -> Made:
        place = tmp_path_factory.mktemp(family)
        source = checkpoints.make(family, place / "source", **SMALL_OF.get(family, SMALL))
        report = convert(str(source), place / "out", ConvertOptions(target="onnx", **dict(options)))
        return Made(place / "out", report)

    return convert_once


def given(interface: Interface, tokens: int) -> dict[str, np.ndarray]:
    """Two sequences, nothing past."""
    past = {
        f"past_key_values.{i}.{part}": np.zeros((2, heads, 0, width), np.float32)
        for i, (heads, *widths) in enumerate(interface.past)
        for part, width in zip(("key", "value"), widths, strict=True)
    }
    return arrays(interface, Case("any", 2, tokens), 0, None) | past


def nodes(model: ir.Model) -> list[ir.Node]:
    """Those in functions too."""
    return [node for graph in (model.graph, *model.functions.values()) for node in graph.all_nodes()]


def test_the_reference_evaluator_agrees(made):
    directory, report = made("qwen3_moe")
    onnx.checker.check_model(str(directory / MODEL), full_check=True)
    evaluator = ReferenceEvaluator(onnx.load(directory / MODEL))
    for tokens in (1, 20):
        inputs = given(report.interface, tokens)
        expected = open_target("onnx").open(directory).run(inputs)
        for name, found in zip(evaluator.output_names, evaluator.run(None, inputs), strict=True):
            np.testing.assert_allclose(found, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", OLDER)
def test_an_older_opset_has_functions_for_what_it_lacks(made, family):
    directory, report = made(family, ("opset", 21))
    model = load(directory)
    assert report.parity.passed and model.opset_imports[""] == 21 and model.ir_version <= 13
    assert {made.opset_imports[""] for made in model.functions.values()} == {21}
    assert not {"Attention", "RMSNormalization", "RotaryEmbedding"} & {n.op_type for n in nodes(model) if not n.domain}
    onnx.checker.check_model(str(directory / MODEL), full_check=True)


@pytest.mark.parametrize(("family", "asked", "opset"), [("qwen3_moe", 0, 23), ("qwen3_moe", 24, 24), ("vit", 0, 23)])
def test_the_lowest_opset_that_suffices(made, family, asked, opset):
    directory, _ = made(family, ("opset", asked), *GRAPH) if asked else made(family)
    model = load(directory)
    assert model.opset_imports[""] == opset and {made.opset_imports[""] for made in model.functions.values()} <= {opset}


def test_an_opset_without_the_types_is_refused(checkpoint, tmp_path):
    with pytest.raises(Usage, match="--opset 24 has not the types"):
        convert(str(checkpoint("qwen3_moe")), tmp_path / "o", ConvertOptions(target="onnx", opset=24, quantize="int2:16"))
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("body", ["dense", "gathered", "sorted"])
def test_a_body_can_be_asked_for(made, body):
    artifact = made("qwen3_moe", ("mixture", body), *GRAPH).report.artifact
    assert artifact.mixtures[0].limits == () and ("Scan" in artifact.operators) == (body == "sorted")
    assert "If" not in artifact.operators or body == "sorted"


def test_experts_are_judged_on_both_sides_of_the_limit(made, tmp_path):
    """A fault in the body for many tokens alone, beyond every case of parity, is seen."""
    directory, report = made("mixtral")
    (mixture,) = report.artifact.mixtures
    assert mixture.limits and mixture.k == 2 and mixture.ids and mixture.choice.endswith("/scores")
    model = load(directory)
    spoil(model)
    replace(model, directory)
    failures = parity(directory).failures
    assert any("experts off by" in failure for failure in failures)


def spoil(model: ir.Model) -> None:
    """Where there are many tokens, what experts give is not weighed."""
    made = model.functions["mocomp", "Experts", ""]
    (branch,) = [node for node in made if node.op_type == "If"]
    many = branch.attributes["else_branch"].as_graph()
    (node,) = [node for node in many if node.op_type == "Mul" and node.outputs[0].name == "weighted"]
    node.replace_input_with(1, node.inputs[0])


def test_as_many_nodes_for_128_experts_as_for_8(made, tmp_path):
    checkpoints.config("qwen3_moe", experts=128, **SMALL).save_pretrained(tmp_path)
    many = convert(str(tmp_path), tmp_path / "out", ConvertOptions(target="onnx", **dict(GRAPH))).artifact
    few = made("qwen3_moe").report.artifact
    assert many.operators == few.operators and few.operators["Experts"] == few.operators["Route"] == 1


ROUTERS = {
    "softmax_topk": (SoftmaxTopK(3, True), 0),
    "topk_softmax": (TopKSoftmax(3, 2.0), 0),
    "topk_uniform": (TopKUniform(3), 0),
    "sigmoid_topk": (SigmoidTopK(2, groups=4, groups_kept=2, scale=2.5), 8),
    "softmax_bias_topk": (SoftmaxBiasTopK(3, masked=True), 8),
    "sparse_mixer": (SparseMixer(2), 0),
    "auxiliary": (Auxiliary(8), None),
    "expert_choice": (ExpertChoice(8, 2.0), 0),
}
"""A router of each kind that is in a checkpoint's own class, and the size of its tensor: none, E, or one for each token."""


def test_every_other_kind_of_router_is_run_elsewhere():
    assert ROUTERS.keys() == RUN_ELSEWHERE
    assert not ROUTERS.keys() & KINDS.keys() and ROUTERS.keys() | KINDS.keys() == discover("mocomp.routers", "Router").keys()


@pytest.mark.parametrize("name", ROUTERS)
def test_a_route_is_the_routers_own(name):
    """ids and weights are those of `choose` at other lengths than traced; the K chosen have the largest scores."""
    router, size = ROUTERS[name]
    random, known = torch.Generator().manual_seed(0), {0: [], None: [(None, 8)]}
    shapes = [(None, 8), *known.get(size, [(size,)])]
    made = ir.to_proto(route_function(spell(router), shapes, "Route", 21))
    evaluator = ReferenceEvaluator(made)
    for tokens in (1, 13):
        tensors = [torch.randn([tokens if s is None else s for s in shape], generator=random) for shape in shapes]
        ids, weights = router.choose(*tensors)
        found = evaluator.run(None, dict(zip(made.input, (tensor.numpy() for tensor in tensors), strict=True)), {})
        assert np.array_equal(found[0], ids.numpy())
        np.testing.assert_allclose(found[1], weights.numpy(), rtol=1e-5, atol=1e-7)
        if router.fixed:
            kth = np.sort(found[2], -1)[:, -router.k]
            assert found[2].shape == (tokens, 8) and (np.take_along_axis(found[2], found[0], -1) >= kth[:, None]).all()


def test_options_of_other_targets_are_refused():
    for refused in ({"accuracy_level": 4}, {"device": "cuda"}):
        with pytest.raises(Usage):
            open_target("onnx", dataclasses.replace(Deployment(), **refused))
