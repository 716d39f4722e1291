"""The graph does not grow with the number of experts, and what a mixture adds to a layer is counted."""

from collections.abc import Callable, Collection
from functools import cache
from typing import NamedTuple

import onnx_ir as ir
import pytest

from mocomp.commands.upcycle import upcycle
from mocomp.options import ConvertOptions, UpcycleOptions
from mocomp.pipeline import convert
from mocomp.targets import Artifact
from tests import checkpoints

ALLOWED = 12
COSTS = {
    "mixtral": 3, "qwen2_moe": 8, "qwen3_moe": 3, "olmoe": 7, "granitemoe": 4, "phimoe": 25, "gpt_oss": 3,
    "deepseek_v3": 20, "glm4_moe": 11, "ernie4_5_moe": 11, "ernie4_5_vl_moe": 20,
}  # fmt: skip
"""Nodes of one mixture besides its router's product: MoE, the part of the routing that MoE does not do, reshapes."""
ABOVE = {
    "phimoe": "each choice has a mask and a softmax of its own",
    "deepseek_v3": "groups are chosen before experts",
    "ernie4_5_vl_moe": "the mask of the modalities, 7 nodes of which all layers share, and of what the bias may choose",
}


class Graph(NamedTuple):
    artifact: Artifact
    model: ir.Model


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


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_as_many_nodes_for_128_experts_as_for_8(graph, family):
    few, many = graph(family, **only_mixtures(family)).artifact, graph(family, experts=128, **only_mixtures(family)).artifact
    assert (few.nodes, few.operators) == (many.nodes, many.operators)
    assert few.weight_bytes < many.weight_bytes


@pytest.mark.parametrize("family", checkpoints.MIXTURES)
def test_what_a_mixture_costs(graph, family):
    model = graph(family, **only_mixtures(family)).model
    nodes = block([node for node in model.graph if node.op_type == "MoE"][-1])
    assert len(nodes) - 1 == COSTS[family], sorted(node.op_type for node in nodes)
    assert COSTS[family] <= ALLOWED or family in ABOVE


def test_the_count_is_what_layers_add(graph):
    """Counted another way: the same model with its first layer dense, whose own nodes are counted too."""
    mixed, half = graph("qwen3_moe"), graph("qwen3_moe", decoder_sparse_step=2)
    product = _only_user(half.model.graph.initializers["model.layers.0.mlp.up_proj.weight"])
    while product.op_type == "Transpose":
        product = _only_user(product.outputs[0])
    assert mixed.artifact.nodes - half.artifact.nodes == COSTS["qwen3_moe"] + 1 - len(block(product))


def only_mixtures(family: str) -> dict[str, int]:
    """The change to the config after which no layer is dense, so that the last is one of several alike."""
    return {"first_k_dense_replace": 0} if "first_k_dense_replace" in checkpoints.FAMILIES[family].fields else {}


def block(inside: ir.Node) -> set[ir.Node]:
    """The nodes of the block of `inside` in the last layer, from its normed input to its sum with the residual stream.

    What earlier layers use as well is not among them. Of a sum of branches, such as shared experts, only the branch of
    `inside` counts.
    """
    source = inside.inputs[0]
    while source.producer().op_type == "Reshape":
        source = source.producer().inputs[0]
    before = _upstream([source])
    path = [inside]
    while not _is_residual(following := _only_user(path[-1].outputs[0]), before):
        path.append(following)
    return _upstream([value for node in path if node.op_type != "Add" for value in node.inputs], {*before, *path}) - before


def _upstream(values: list[ir.Value | None], known: Collection[ir.Node] = ()) -> set[ir.Node]:
    """`known`, and the nodes that `values` are computed by, no further up than what is known."""
    found, waiting = set(known), [value for value in values if value is not None]
    while waiting:
        node = waiting.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            waiting.extend(value for value in node.inputs if value is not None)
    return found


def _only_user(value: ir.Value) -> ir.Node:
    (use,) = value.uses()
    return use.node


def _is_residual(node: ir.Node, before: set[ir.Node]) -> bool:
    return node.op_type == "Add" and any(value.producer() in before for value in node.inputs)


GROUPED = {"groups": "text=4,image=4", "modality": ("image=100..127",)}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_groups_cost_few_nodes(checkpoint, tmp_path, family):
    """The same mixture with its experts in two groups: whose a token is, once, and a mask in every layer."""
    added = {}
    for layers in (2, 4):
        nodes = {}
        for name, options in (("one", {"groups": "8"}), ("two", GROUPED)):
            place = tmp_path / f"{name}-{layers}"
            given = UpcycleOptions(**options, top_k=2, layout="mocomp", parity="off")
            upcycle(str(checkpoint(family, num_hidden_layers=layers)), place, given)
            artifact = convert(str(place), place / "out", ConvertOptions(weights="none", parity="off")).artifact
            assert artifact.operators["MoE"] == layers
            nodes[name] = artifact.nodes
        added[layers] = nodes["two"] - nodes["one"]
    per_layer = (added[4] - added[2]) / 2
    per_graph = added[2] - 2 * per_layer
    print(f"{family}: {per_graph:g} nodes, and {per_layer:g} in every layer")
    assert 0 < per_layer <= 3 and 0 < per_graph <= 4
