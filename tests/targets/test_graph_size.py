"""The graph does not grow with the number of experts, and what a mixture adds to a layer is counted."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import onnx_ir as ir
import pytest

from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.targets import Artifact
from tests import checkpoints

ALLOWED = 12
COSTS = {
    "mixtral": 4,
    "qwen2_moe": 9,
    "qwen3_moe": 4,
    "olmoe": 8,
    "granitemoe": 4,
    "phimoe": 99,
    "gpt_oss": 3,
    "deepseek_v3": 99,
    "glm4_moe": 12,
}
"""Nodes of one layer's mixture besides its router's product: MoE, the routing that MoE does not do, reshapes."""


class Graph(NamedTuple):
    artifact: Artifact
    model: ir.Model

    def mixtures(self) -> list[ir.Node]:
        return [node for node in self.model.graph if node.op_type == "MoE"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory) -> Callable[..., Graph]:
    """graph(family, **changes): the graph that a config.json becomes, without weights."""

    @cache
    def made(family: str, **changes) -> Graph:
        source = tmp_path_factory.mktemp(family)
        checkpoints.config(family, **changes).save_pretrained(source)
        report = convert(str(source), source / "artifact", ConvertOptions(weights="none", parity="off"))
        return Graph(report.artifact, ir.load(source / "artifact" / "model.onnx"))

    return made


def block(inside: ir.Node) -> set[ir.Node]:
    """The nodes of the block around `inside`, from its normed input to before its sum with the residual stream.

    Where the block sums several branches, such as shared experts, only the branch of `inside` counts.
    """
    below = _downstream(_normed_input(inside))
    path = [inside]
    while not _is_residual(following := _only_user(path[-1]), below):
        path.append(following)
    found, waiting = set(path), [node for node in path if node.op_type != "Add"]
    while waiting:
        producers = {value.producer() for value in waiting.pop().inputs if value is not None}
        new = (producers & below) - found
        found |= new
        waiting.extend(new)
    return found


def _normed_input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    while value.producer().op_type == "Reshape":
        value = value.producer().inputs[0]
    return value


def _downstream(value: ir.Value) -> set[ir.Node]:
    found, waiting = set(), [value]
    while waiting:
        users = {use.node for use in waiting.pop().uses()} - found
        found |= users
        waiting.extend(output for user in users for output in user.outputs)
    return found


def _only_user(node: ir.Node) -> ir.Node:
    (use,) = node.outputs[0].uses()
    return use.node


def _is_residual(node: ir.Node, below: set[ir.Node]) -> bool:
    return node.op_type == "Add" and any(v.producer() is not None and v.producer() not in below for v in node.inputs)


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_as_many_nodes_for_128_experts_as_for_8(graph, family):
    few, many = graph(family).artifact, graph(family, experts=128).artifact
    assert (few.nodes, few.operators) == (many.nodes, many.operators)
    assert few.weight_bytes < many.weight_bytes


@pytest.mark.parametrize("family", checkpoints.MIXTURES)
def test_what_a_mixture_costs(graph, family):
    mixtures = graph(family).mixtures()
    assert [len(block(node)) - 1 for node in mixtures] == [COSTS[family]] * len(mixtures)
    assert COSTS[family] <= ALLOWED or family in ABOVE


ABOVE = {"phimoe": "two choices, each masked and normed apart", "deepseek_v3": "groups of experts"}


def test_the_count_is_what_a_layer_adds(graph):
    """Counted another way: the same model with its last layer dense, whose own nodes are counted too."""
    mixed, dense = graph("qwen3_moe", num_hidden_layers=3), graph("qwen3_moe", num_hidden_layers=3, mlp_only_layers=(2,))
    down = next(n for n in dense.model.graph if any(v and v.name and "2.mlp.down" in v.name for v in n.inputs))
    print([n.op_type for n in block(down)])
    assert mixed.artifact.nodes - dense.artifact.nodes == COSTS["qwen3_moe"] + 1 - len(block(down))
