"""A program whose layers tokens may go past is the model of mocomp.nn: in prompts, behind a cache, beside padding."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch

from mocomp.errors import MocompError, Unsupported
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.insert_depth import InsertDepth
from tests.inserted import Inserted, error, feed, prepare

aten = torch.ops.aten
CASES = {
    "by its score": {"depth": "all", "noise": 0.3},
    "foretold, one layer, beside groups": {
        "depth": "1", "auxiliary": 5, "groups": "text=4,image=2", "modality": ("image=40..79",), "noise": 0.3,
        "router": "expert_choice",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def inserted(upcycled) -> Callable[[str], Inserted]:
    """inserted(case): the checkpoint of a case, each prepared once."""
    return cache(lambda case: prepare(upcycled("llama", **CASES[case])))


def hiding(program: Program) -> list[torch.fx.Node]:
    """The nodes that say whether a token goes through, one for each layer with depth."""
    return calls(program, aten.gt.Scalar)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", [(3, 4, 6), (1, 1, 9), (2, 11, 0), (1, 1, 0)], ids=str)
def test_is_the_model(inserted, case, shape):
    made = inserted(case)
    traced, (_, receipt) = made.after()
    assert (receipt.name, receipt.changed) == ("insert_depth", 2 if case == "by its score" else 1)
    inputs = feed(made.interface, *shape)
    for i in range(len(made.interface.past)):
        inputs[f"past_key_values.{i}.key"][:, :, 1::3] = 0.0  # of tokens that went past
    assert error(traced, made, inputs) <= 2e-5


def test_some_tokens_go_through_and_others_do_not(inserted):
    """Otherwise the agreement above would be of nothing."""
    made = inserted("by its score")
    traced, _ = made.after()
    graph = traced.program.graph
    graph.output_node().args = (tuple(hiding(traced.program)),)
    traced.inputs = feed(made.interface, 2, 11)
    for through in traced.run():
        assert 0 < through.float().mean() < 1


@pytest.mark.parametrize("case", CASES)
def test_every_node_knows_its_value(inserted, case):
    traced, _ = inserted(case).after()
    for node in traced.program.graph.nodes:
        assert node.op == "output" or node.meta.get("val") is not None, node.format_node()
    run(Clean(), traced.program)
    assert len(calls(traced.program, MOCOMP.attention.default)) == 2


def test_a_layer_that_no_plan_names_is_left_alone(inserted):
    made = inserted("foretold, one layer, beside groups")
    without, _ = made.after(made.steps[0])
    traced, _ = made.after()
    lines = [
        [node.format_node() for node in program.graph.nodes if scope(node).startswith("model.layers.0.")]
        for program in (without.program, traced.program)
    ]
    assert lines[0] == lines[1] != []
    fresh = traced.program.read_weights() - without.program.read_weights()
    assert fresh == {f"model.layers.1.depth.{name}" for name in ("router", "aux_in", "aux_out")}


def not_hidden(program: Program) -> None:
    """Keys of tokens that go past stay what they are."""
    for node in calls(program, aten.where.ScalarOther):
        if node.meta["val"].dim() == 4:
            node.replace_all_uses_with(node.args[1])


def not_masked(program: Program) -> None:
    """Keys of zeros are seen, as keys that are like no other."""
    for attention in calls(program, MOCOMP.attention.default):
        attention.update_arg(3, attention.args[3].args[0])


def always_through(program: Program) -> None:
    for node in hiding(program):
        node.update_arg(1, -1e9)


def half_as_often(program: Program) -> None:
    for node in hiding(program):
        node.update_arg(1, 0.1)


def without_its_share(program: Program) -> None:
    for node in calls(program, aten.sigmoid.default):
        if node.meta["val"].shape[-1] == 1:  # of a score, and not of a gate
            (product,) = node.users
            product.replace_all_uses_with(product.args[1])


FAULTS = [not_hidden, not_masked, always_through, half_as_often, without_its_share]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_seen(inserted, fault):
    made = inserted("by its score")
    traced, _ = made.after()
    fault(traced.program)
    assert error(traced, made, feed(made.interface, 2, 11)) > 1e-3


@pytest.mark.parametrize(
    ("layer", "kind", "message"),
    [
        ("model.layers.7", MocompError, r"no layer model\.layers\.7 in the traced graph"),
        ("model.layers.0.mlp", Unsupported, "one hidden state in, one out and one attention"),
        ("model", Unsupported, r"model: mixture-of-depths needs a layer with one hidden state in"),
    ],
)
def test_a_layer_that_cannot_be_gone_past_is_told(inserted, layer, kind, message):
    insert, deep = inserted("by its score").steps
    weights = {f"{layer}.depth.router": deep.weights["model.layers.0.depth.router"]}
    wrong = InsertDepth((replace(deep.plans[0], layer=layer),), weights)
    with pytest.raises(kind, match=message):
        inserted("by its score").after(insert, wrong)
