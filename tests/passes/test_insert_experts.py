"""The program after the insertion is the model of mocomp.nn, at any shape, and no other program is."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch

from mocomp.errors import MocompError
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.insert_experts import InsertExperts
from mocomp.weights import recipes
from tests.inserted import Inserted, error, feed, prepare

IMAGES = {"groups": "text=4,image=2", "noise": 0.3}
ONE_LAYER = {"source": (("num_hidden_layers", 1),)}
CASES = {
    "ids": ("llama", IMAGES | {"modality": ("image=40..79",), "top_k": 2}, 2),
    "another input, one layer": (
        "llama",
        IMAGES | {"modality": ("image=modality_ids:1",), "layers": "1", "router": "softmax_bias_topk"},
        1,
    ),
    "positions, experts chose": (
        "llama",
        ONE_LAYER | IMAGES | {"modality": ("image=position:2..4,8",), "router": "expert_choice:score=sigmoid", "auxiliary": 4},
        1,
    ),
    "one group, slices, biases": (
        "bert",
        ONE_LAYER | {"groups": "6", "granularity": 3, "shared": 1, "top_k": 2, "noise": 0.3},
        1,
    ),
    "positions of patches": ("vit", ONE_LAYER | IMAGES | {"modality": ("image=position:1..8",)}, 1),
}
SHAPES = {"llama": [(3, 4, 6), (1, 1, 9), (2, 11, 0), (1, 1, 0)], "bert": [(3, 9, 0), (1, 2, 0)], "vit": [(3, 1, 0), (1, 1, 0)]}


@pytest.fixture(scope="module")
def inserted(upcycled) -> Callable[[str], Inserted]:
    """inserted(case): the checkpoint of a case, each prepared once."""

    @cache
    def made(case: str) -> Inserted:
        family, options, _ = CASES[case]
        return prepare(upcycled(family, **options))

    return made


@pytest.mark.parametrize("case", CASES)
def test_is_the_model(inserted, case):
    family, _, mixtures = CASES[case]
    made = inserted(case)
    traced, (receipt,) = made.after()
    assert (receipt.name, receipt.changed, receipt.skipped) == ("insert_experts", mixtures, [])
    for shape in SHAPES[family]:
        assert error(traced, made, feed(made.interface, *shape)) <= 2e-5, shape


@pytest.mark.parametrize("case", CASES)
def test_every_node_knows_its_value_and_every_weight_is_read(inserted, case):
    made = inserted(case)
    traced, _ = made.after()
    for node in traced.program.graph.nodes:
        assert node.op == "output" or node.meta.get("val") is not None, node.format_node()
    assert traced.program.read_weights() == set(traced.program.recipes)
    run(Clean(), traced.program)  # what is left is as passes want it
    assert calls(traced.program, MOCOMP.experts.default)


def test_what_the_plan_does_not_name_is_left_alone(inserted):
    made = inserted("another input, one layer")
    traced, _ = made.after()
    before, after = made.traced.program, traced.program
    kept = {name for name in before.recipes if "layers.1.mlp" not in name}
    assert all(after.recipes[name] is before.recipes[name] for name in kept)
    assert {name for name in after.recipes if name not in before.read_weights()} == {
        *(f"model.layers.1.mlp.{name}" for name in ("router.weight", "router.correction", "experts.w_in", "experts.w_out")),
        "modality.table.0",
        "modality.allowed.0",
    }
    assert [scope(node) for node in calls(after, MOCOMP.experts.default)] == ["model.layers.1.mlp.experts"]
    text = [node.format_node() for node in before.graph.nodes if scope(node).startswith("model.layers.0.")]
    assert text == [node.format_node() for node in after.graph.nodes if scope(node).startswith("model.layers.0.")] != []


def test_modality_is_looked_up_once(inserted):
    """And what it is looked up in is shared by all layers."""
    traced, _ = inserted("ids").after()
    lookups = calls(traced.program, torch.ops.aten.index_select.default)
    assert len(lookups) == 3  # of the table, and of who may go where in each of two layers
    assert sorted(name for name in traced.program.recipes if name.startswith("modality.")) == [
        "modality.allowed.0",
        "modality.table.0",
    ]


def test_no_lookup_where_all_tokens_are_alike(inserted):
    traced, _ = inserted("one group, slices, biases").after()
    assert not [name for name in traced.program.recipes if name.startswith("modality.")]


def plant(name: str, change) -> Callable[[Program], None]:
    """A fault: a constant of the graph is another."""

    def edit(program: Program) -> None:
        value = program.recipes[name].value
        program.recipes[name] = recipes.literal(change(value.clone()))

    return edit


def of_another_kind(program: Program) -> None:
    for route in calls(program, MOCOMP.route.default):
        route.update_arg(2, route.args[2].replace('"normalize": true', '"normalize": false'))


def exchange(program: Program) -> None:
    """The experts' first products, the other way round."""
    name = "model.layers.0.mlp.experts.w_in"
    program.recipes[name] = recipes.stack([recipes.slice_of(program.recipes[name], 0, e, e + 1) for e in (5, 4, 3, 2, 1, 0)], 1)
    program.recipes[name] = recipes.reshape(program.recipes[name], program.recipes[name].shape[1:])


FAULTS = {
    "groups exchanged": plant("modality.allowed.0", lambda table: table.flip(0)),
    "groups forgotten": plant("modality.allowed.0", lambda table: table.fill_(True)),
    "one id less": plant("modality.table.0", lambda table: table.index_fill_(0, torch.tensor([79]), 0)),
    "ids exchanged": plant("modality.table.0", lambda table: 1 - table),
    "weights that are not divided": of_another_kind,
    "another order of experts": exchange,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(inserted, fault):
    made = inserted("ids")
    traced, _ = made.after()
    FAULTS[fault](traced.program)
    inputs = feed(made.interface, 2, 11)
    inputs["input_ids"][0, :3] = 79
    assert error(traced, made, inputs) > 1e-3


POSITIONS = {
    "padding counted": lambda inputs: inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])},
    "the past forgotten": lambda inputs: (
        {n: v[:, :, 1:] if n.startswith("past") else v for n, v in inputs.items()}
        | {"attention_mask": inputs["attention_mask"][:, 1:]}
    ),
}


@pytest.mark.parametrize("change", POSITIONS)
def test_positions_are_counted_as_the_model_counts_them(inserted, change):
    """The lookup of a program that sees other positions differs, so that the agreement above is of the positions too."""
    made = inserted("positions, experts chose")
    traced, _ = made.after()
    (lookup, *_) = calls(traced.program, torch.ops.aten.index_select.default)
    graph = traced.program.graph
    graph.output_node().args = ((lookup,),)
    inputs = feed(made.interface, 3, 4, 6)
    traced.inputs = inputs
    (right,) = traced.run()
    traced.inputs = POSITIONS[change](inputs)
    (other,) = traced.run()
    assert right.shape == other.shape and not torch.equal(right, other)


def test_a_block_that_is_not_there_is_told(inserted):
    made = inserted("ids")
    (step,) = made.steps
    for replaces, name in (("dense", "model.layers.7.mlp"), ("experts", "model.layers.0.mlp")):
        mixture = replace(step.plan.mixtures[0], enter=name, replaces=replaces)
        wrong = InsertExperts(replace(step.plan, mixtures=(mixture,)), step.weights, step.parameters)
        with pytest.raises(MocompError, match=f"no {replaces} {name} in the traced graph"):
            made.after(wrong)


def test_twice_is_an_error_and_not_two_mixtures(inserted):
    made = inserted("ids")
    (step,) = made.steps
    with pytest.raises(MocompError, match=r"no dense model\.layers\.0\.mlp in the traced graph"):
        made.after(step, step)
