"""What is made of copies and slices computes what the block did wherever that is claimed, and moves where it is not."""

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mocomp.errors import Usage
from mocomp.fill import Filled
from mocomp.fill.depth import fill_depth
from mocomp.fill.routing import random_rows, router, tried, zero_rows
from mocomp.fill.upcycle import Upcycle
from mocomp.nn.mixture import Mixture, TokenModality
from mocomp.passes import run
from mocomp.passes.clean import Clean
from mocomp.passes.fold_weights import FoldWeights
from mocomp.plans.blocks import Block, Dense, find_blocks
from mocomp.routers.softmax_topk import SoftmaxTopK
from mocomp.weights import recipes
from tests.programs import HIDDEN, Traced, trace

WIDTH, TOKENS = 12, 40


class Layers(nn.Module):
    """A gated block without biases, as `layers.0.mlp`, and a plain one with them, as `layers.1.mlp`."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Module(), nn.Module()])
        for layer, parts, bias in zip(self.layers, ("gate up down", "up down"), (False, True), strict=True):
            sizes = {name: (HIDDEN, WIDTH) if name != "down" else (WIDTH, HIDDEN) for name in parts.split()}
            layer.mlp = nn.ModuleDict({name: nn.Linear(*size, bias) for name, size in sizes.items()})
        generator = torch.Generator().manual_seed(5)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def gated(self, x):
        mlp = self.layers[0].mlp
        return mlp["down"](F.silu(mlp["gate"](x)) * mlp["up"](x))

    def plain(self, x):
        mlp = self.layers[1].mlp
        return mlp["down"](F.gelu(mlp["up"](x)))

    def forward(self, x):
        return self.gated(x), self.plain(x + 1)


@cache
def model() -> tuple[Layers, Traced]:
    module = Layers()
    traced = trace(module)
    for step in (Clean(), FoldWeights()):
        run(step, traced.program)
    return module, traced


@cache
def blocks() -> dict[str, Block]:
    module, traced = model()
    found, _ = find_blocks(traced.program, module.state_dict())
    gated, plain = found
    assert (gated.enter, plain.enter) == ("layers.0.mlp", "layers.1.mlp")
    return {"gated": gated, "plain": plain}


def upcycled(block: str | Block, groups: str = "all=4", k: int = 1, kind: str = "softmax_topk", **options: Any) -> Filled:
    sizes = tuple((name, int(count)) for name, count in (part.split("=") for part in groups.split(",")))
    fill = {"rows": random_rows(0), "reach": tuple((name,) for name, _ in sizes)} | options
    return Upcycle(sizes, k=k, router=kind, **fill)(blocks()[block] if isinstance(block, str) else block)


def evaluated(filled: Filled) -> dict[str, torch.Tensor]:
    return {name: recipe.evaluate(model()[1].read) for name, recipe in filled.weights.items()}


def error(block: str, filled: Filled) -> float:
    """The relative error of a mixture in place of its block, on tokens of all modalities in turn."""
    weights = evaluated(filled)
    assert {name: tuple(value.shape) for name, value in weights.items()} == filled.plan.shapes()
    ids = torch.arange(TOKENS) % len(filled.plan.reach)
    mixture = Mixture(filled.plan, TokenModality(ids=ids)).eval()
    mixture.load_state_dict(weights)
    x = torch.randn(TOKENS, HIDDEN, generator=torch.Generator().manual_seed(1))
    expected = getattr(model()[0], block)(x)
    with torch.no_grad():
        return float((mixture(x) - expected).abs().max() / expected.abs().max())


PRESERVED: dict[str, dict[str, Any]] = {
    "copies": {},
    "all copies": {"k": 4},
    "two of them": {"k": 2},
    "equal rows": {"k": 2, "rows": zero_rows},
    "two modalities": {"groups": "text=3,image=2", "k": 2},
    "slices": {"granularity": 2, "k": 2},
    "slices of two copies": {"groups": "all=6", "granularity": 2, "k": 4},
    "three slices": {"groups": "all=6", "granularity": 3, "k": 3},
    "slices of two modalities": {"groups": "text=8,image=4", "granularity": 4, "k": 4},
    "one slice for all": {"granularity": 2, "shared": 1},
    "most slices for all": {"granularity": 4, "shared": 3, "k": 2},
    "a slice for all and slices": {"groups": "text=6,image=3", "granularity": 4, "shared": 1, "k": 3},
    "one slice for all, equal rows": {"granularity": 2, "shared": 1, "rows": zero_rows},
    "top-k before the softmax": {"kind": "topk_softmax", "k": 2},
    "top-k before the softmax, slices": {"kind": "topk_softmax", "k": 2, "granularity": 2},
    "sigmoid scores": {"kind": "sigmoid_topk", "k": 2, "granularity": 2},
    "sigmoid scores, two modalities": {"kind": "sigmoid_topk", "k": 2, "groups": "text=3,image=2"},
    "groups of experts": {"kind": "sigmoid_topk:groups=2,groups_kept=1", "k": 2},
    "a bias that chooses": {"kind": "softmax_bias_topk", "k": 2, "granularity": 2},
    "no division, all chosen": {"kind": "softmax_topk:normalize=false", "k": 4},
    "one of equal weight": {"kind": "topk_uniform"},
    "slices of equal weight": {"kind": "topk_uniform:scale=0.25", "granularity": 2, "k": 4},
    "an auxiliary router where there is no need": {"auxiliary": 3},
}


@pytest.mark.parametrize("block", ["gated", "plain"])
@pytest.mark.parametrize("case", PRESERVED)
def test_the_function_is_the_blocks(case, block):
    filled = upcycled(block, **PRESERVED[case])
    assert filled.changes == "" and error(block, filled) <= 2e-6


MOVED: dict[str, tuple[dict[str, Any], str]] = {
    "noise": ({"noise": 0.1}, "experts were disturbed"),
    "drawn anew": ({"redraw": 0.5}, "experts were disturbed"),
    "drawn anew, all": ({"redraw": 1.0}, "experts were disturbed"),
    "a slice of a copy": ({"granularity": 2, "k": 1}, "top-1 does not take whole copies of 2 slices"),
    "one and a half": ({"granularity": 2, "k": 3}, "top-3 does not take whole copies"),
    # which of equals torch takes is its own affair; of six it takes 3 and 5, the second slice twice
    "equal rows, slices": ({"groups": "all=6", "granularity": 2, "k": 2, "rows": zero_rows}, "slices of different copies"),
    "weights that are not divided": ({"kind": "softmax_topk:normalize=false", "k": 2}, "do not sum to 1"),
    "sigmoid scores, not divided": ({"kind": "sigmoid_topk:normalize=false", "k": 2}, "do not sum to 1"),
    "a scale": ({"kind": "softmax_topk:scale=2.5"}, "weights of softmax_topk:scale=2.5 do not sum to 1"),
    "two of weight 1": ({"kind": "topk_uniform", "k": 2}, "do not sum to 1"),
    "sparse mixer": ({"kind": "sparse_mixer", "k": 2}, "do not sum to 1"),
    "experts choose": ({"kind": "expert_choice"}, "any number of experts"),
    "experts choose, foretold": ({"kind": "expert_choice:score=sigmoid", "auxiliary": 5}, "any number of experts"),
}


@pytest.mark.parametrize("block", ["gated", "plain"])
@pytest.mark.parametrize("case", MOVED)
def test_what_is_not_claimed_to_be_the_same_is_not(case, block):
    options, reason = MOVED[case]
    filled = upcycled(block, **options)
    assert reason in filled.changes and error(block, filled) > 1e-3


def in_bfloat16(block: Block) -> Block:
    """The block as a checkpoint in bfloat16 has it."""

    def stored(recipe):
        (leaf,) = recipe.leaves()
        return recipes.cast(recipes.Tensor(recipe.shape, torch.bfloat16, leaf.name), recipe.dtype)

    return replace(block, dense=Dense(*(stored(getattr(block.dense, n)) for n in ("w_in", "b_in", "w_out", "b_out"))))


@pytest.mark.parametrize(("slices", "shared", "rounded"), [(2, 0, False), (3, 0, True), (4, 1, False), (4, 0, False)])
def test_a_bias_that_cannot_be_cut_exactly_is_told(slices, shared, rounded):
    """A third of a number of bfloat16 is none; a half is, and what goes through the shared expert is not cut."""
    options = {"groups": f"all={2 * (slices - shared)}", "granularity": slices, "shared": shared, "k": slices - shared}
    reason = upcycled(in_bfloat16(blocks()["plain"]), **options).changes
    assert reason == ("a bias of torch.bfloat16 is rounded when it is cut into 3" if rounded else "")
    assert upcycled("plain", **options).changes == ""


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "slices of unequal width": ({"granularity": 5}, r"--granularity 5 does not divide the width 12 of layers\.0\.mlp"),
    "no slice": ({"granularity": 0}, "--granularity 0"),
    "all slices shared": ({"granularity": 2, "shared": 2}, "--shared 2 takes that many of the 2 slices"),
    "shared, not cut": ({"shared": 1}, "leave one"),
    "less than none shared": ({"shared": -1}, "--shared -1"),
    "half a copy": ({"groups": "all=5", "granularity": 2}, "group all has 5 experts, which is not whole copies of 2 slices"),
    "more than there are": ({"k": 5}, "--top-k 5, and group all has 4 experts"),
    "more than one group has": ({"groups": "text=4,image=2", "k": 3}, "--top-k 3, and group image has 2"),
    "none": ({"k": 0}, "--top-k 0"),
    "a router that there is not": ({"kind": "oracle"}, "no router 'oracle'; they are auxiliary, batch_priority, "),
    "a field that there is not": (
        {"kind": "softmax_topk:mood=1"},
        "router softmax_topk has no 'mood'; it has normalize, scale",
    ),
    "its k by another name": ({"kind": "softmax_topk:k=3"}, "has no 'k'"),
    "a value of another type": ({"kind": "softmax_topk:scale=red"}, "scale=red is not a value like 1.0"),
    "a truth of another spelling": ({"kind": "softmax_topk:normalize=yes"}, "normalize=yes is not a value like False"),
    "a value that there is not": ({"kind": "expert_choice:score=mood"}, "expert_choice cannot route 4 experts: KeyError"),
    "groups that do not divide": ({"kind": "sigmoid_topk:groups=3"}, "sigmoid_topk cannot route 4 experts"),
    "a router without a scale": ({"kind": "expert_choice", "granularity": 2}, "expert_choice has no scale"),
    "the router of inference": ({"kind": "auxiliary"}, "foretells another one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_meant_is_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(Usage, match=message) as caught:
        upcycled("gated", **options)
    assert caught.value.exit_code == 2


DISTURBED = {"groups": "text=3,image=2", "noise": 0.1, "redraw": 0.25}


def test_the_same_seed_makes_the_same_and_another_does_not():
    first, again, other = (evaluated(upcycled("plain", **DISTURBED, seed=seed, rows=random_rows(seed))) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert {name for name in first if not torch.equal(first[name], other[name])} == {
        "router.weight",
        "experts.w_in",
        "experts.w_out",
    }


def test_no_two_experts_are_disturbed_alike():
    """Nor any weight of two layers, though all come of one seed."""
    made = [evaluated(upcycled(block, **DISTURBED)) for block in ("gated", "plain")]
    for weights in made:
        for name in ("experts.w_in", "experts.w_out", "router.weight"):
            value = weights[name].flatten(1)
            assert torch.cdist(value, value).add(torch.eye(5) * 9).min() > 1e-3
    assert not torch.equal(made[0]["router.weight"], made[1]["router.weight"])
    auxiliary = [evaluated(upcycled(block, kind="expert_choice", auxiliary=3)) for block in ("gated", "plain")]
    assert not torch.equal(auxiliary[0]["router.aux_in"], auxiliary[1]["router.aux_in"])


@pytest.mark.parametrize("limit", [1, 100, 1 << 20])
def test_the_size_of_the_buffer_does_not_show(limit):
    filled = upcycled("gated", **DISTURBED, granularity=2, k=2, shared=1)
    for name, whole in evaluated(filled).items():
        assert torch.equal(torch.cat(list(filled.weights[name].chunks(model()[1].read, limit))), whole)


def test_a_share_of_each_experts_neurons_is_drawn_anew():
    """Their rows in the first product, gate and up, and their columns in the second; the others are the block's."""
    weights, plain = evaluated(upcycled("gated", redraw=0.25)), evaluated(upcycled("gated"))
    w_in, w_out = (weights[f"experts.{name}"] != plain[f"experts.{name}"] for name in ("w_in", "w_out"))
    for fresh_in, fresh_out in zip(w_in, w_out, strict=True):
        gate, up = fresh_in.any(1).chunk(2)
        assert torch.equal(gate, up) and torch.equal(gate, fresh_out.any(0)) and gate.sum() == 3


def test_what_the_plan_says():
    plan = upcycled("plain", "text=6,image=3", granularity=4, shared=1, k=3).plan
    assert (plan.enter, plan.replaces, plan.width, plan.shared, plan.in_bias, plan.out_bias) == (
        "layers.1.mlp", "dense", 3, 3, True, True,
    )  # fmt: skip
    assert plan.routing == SoftmaxTopK(3, normalize=True, scale=3.0) and plan.reach == (("text",), ("image",))
    foretold = upcycled("plain", kind="expert_choice", auxiliary=5).plan
    assert foretold.auxiliary == 5 and foretold.routing_of_inference.name == "auxiliary"
    assert upcycled("plain", auxiliary=5).plan.auxiliary == 0  # causal itself


def test_copies_of_a_slice_have_one_row():
    rows = evaluated(upcycled("gated", "text=6,image=3", granularity=3, k=3))["router.weight"]
    assert [[i for i in range(9) if torch.equal(rows[i], row)] for row in rows[::3]] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_a_router_is_tried_before_anything_is_made():
    assert tried(router("softmax_topk", 2, 4, masked=False, scale=3.0), 4) == (False, pytest.approx(3.0))
    assert tried(router("softmax_bias_topk", 2, 4, masked=True), 4) == (True, pytest.approx(1.0))
    assert tried(router("expert_choice", 2, 4, masked=True), 4) == (False, None)
    assert router("sigmoid_topk", 2, 4, masked=True).masked and not router("sigmoid_topk", 2, 4, masked=False).masked


def test_depth_of_a_layer():
    filled = fill_depth(blocks()["gated"], 0.25, 3, seed=0)
    assert (filled.plan.layer, filled.plan.hidden, filled.plan.capacity) == ("layers.0", HIDDEN, 0.25)
    made = {name: recipe.evaluate(model()[1].read) for name, recipe in filled.weights.items()}
    assert {name: tuple(value.shape) for name, value in made.items()} == filled.plan.shapes() and filled.changes
    others = [fill_depth(blocks()["gated"], 0.25, 3, seed=1), fill_depth(blocks()["plain"], 0.25, 3, seed=0)]
    for other in others:
        assert not torch.equal(other.weights["depth.router"].evaluate(model()[1].read), made["depth.router"])
