"""Every tested family converts and passes parity, from checkpoints of each type, and is understood for what it is."""

import pytest
import torch

from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.ir.specs import parse
from mocomp.models.families import FAMILIES
from mocomp.routers.sigmoid_topk import SigmoidTopK
from mocomp.routers.softmax_bias_topk import SoftmaxBiasTopK
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.routers.sparse_mixer import SparseMixer
from mocomp.routers.topk_softmax import TopKSoftmax
from tests import checkpoints
from tests.stages import advance, load_traced

TYPES = {"float32": {}, "bfloat16": {"dtype": torch.bfloat16}, "float16": {"dtype": torch.float16}}
ROUTERS = {
    "mixtral": [SoftmaxTopK(k=2, normalize=True)] * 2,
    "qwen2_moe": [SoftmaxTopK(k=2)] * 2,
    "qwen3_moe": [SoftmaxTopK(k=2, normalize=True)] * 2,
    "olmoe": [SoftmaxTopK(k=2)] * 2,
    "granitemoe": [TopKSoftmax(k=2)] * 2,
    "phimoe": [SparseMixer(k=2)] * 2,
    "gpt_oss": [TopKSoftmax(k=2)] * 2,
    "deepseek_v3": [SigmoidTopK(k=2, scale=2.5, groups=4, groups_kept=2)],
    "glm4_moe": [SigmoidTopK(k=2)],
    "ernie4_5_moe": [SoftmaxBiasTopK(k=2, minimum=1e-12)],
    "ernie4_5_vl_moe": [SoftmaxBiasTopK(k=2, minimum=1e-12, masked=True)],
}
ROUTED_WHEN_BUILT = ("ernie4_5_vl_moe",)
"""Families whose router is proven with the block that it belongs to, before anything is traced."""


def test_every_tested_family_has_a_tiny_checkpoint():
    assert checkpoints.FAMILIES.keys() == FAMILIES.keys()
    assert list(ROUTERS) == checkpoints.MIXTURES


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_converts_with_parity(converted, family, dtype):
    report = converted(family, **TYPES[dtype]).report
    parity = report.parity
    assert parity.passed and parity.worst <= 1e-4
    assert parity.agreement == 1.0 and all(case.clean for case in parity.cases)
    assert len(parity.layers) == len(ROUTERS.get(family, []))
    assert all(layer.reached == layer.experts == 8 for layer in parity.layers)
    to_recognise = 0 if family in ROUTED_WHEN_BUILT else len(parity.layers)
    receipt = next(receipt for receipt in report.passes if receipt.name == "fuse_routing")
    assert (receipt.changed, receipt.skipped) == (to_recognise, [])


@pytest.mark.parametrize("family", checkpoints.MIXTURES)
def test_router_is_recognised(checkpoint, family):
    program = load_traced(checkpoint(family)).program
    advance(program, "fold_router_scale")
    found = [parse("mocomp.routers", "Router", node.args[2]) for node in calls(program, MOCOMP.route.default)]
    assert found == ROUTERS[family]
