"""A plan survives its way through config.json, and what is no plan any more is refused."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from mocomp.errors import BadInput
from mocomp.experts.ffn import FFN
from mocomp.experts.glu import GLU
from mocomp.ir.specs import spell
from mocomp.plans.modality import Modality
from mocomp.plans.plan import DepthPlan, MixturePlan, ModelPlan
from mocomp.routers.auxiliary import Auxiliary
from mocomp.routers.expert_choice import ExpertChoice
from mocomp.routers.softmax_topk import SoftmaxTopK

GROUPS, REACH = (("text", 3), ("image", 2)), (("text",), ("image",))
IMAGES = Modality(("text", "image"), "input_ids", ((), ((40, 49), (60, 60))), ("", ""), "text")
PLAIN = MixturePlan("layers.0.mlp", "dense", 16, 6, GROUPS, REACH, spell(SoftmaxTopK(2, True)), spell(GLU("gelu")))
FULL = MixturePlan(
    "layers.1.mlp.fc1", "dense", 16, 6, GROUPS, (("text",), ("text", "image")), spell(ExpertChoice(5)), spell(FFN("relu")),
    leave=("layers.1.mlp.fc2",), shared=4, in_bias=True, out_bias=True, router_bias=True, correction=True, auxiliary=7,
    inference=spell(Auxiliary(5)),
)  # fmt: skip
NEURONS = replace(PLAIN, enter="layers.2.mlp", scoring="neurons", router_bias=True)
DEPTHS = (DepthPlan("layers.0", 16, 0.5), DepthPlan("layers.1", 16, 0.125, auxiliary=3))
PLAN = ModelPlan(IMAGES, (PLAIN, FULL, NEURONS), DEPTHS)
TOWERS = ModelPlan(
    Modality(("text", "image"), "tower", ((), ()), ("text_model", "vision_model")),
    (replace(PLAIN, groups=(("text", 3),), reach=(("text",), ("text",))),),
)
ONE = ModelPlan(None, (replace(PLAIN, groups=(("all", 4),), reach=(("all",),)),))


def through_json(plan: ModelPlan) -> Any:
    return json.loads(json.dumps(plan.to_json()))


@pytest.mark.parametrize("plan", [PLAN, TOWERS, ONE, ModelPlan(None, (), DEPTHS[:1])], ids=["all", "towers", "one", "depth"])
def test_a_plan_comes_back_from_json(plan):
    back = ModelPlan.from_json(through_json(plan), "here")
    assert back == plan and hash(back) == hash(plan)  # tuples again, and no lists


def edited(*path: Any, value: Any) -> Any:
    """The plan as JSON with one thing changed; a value of None takes it away."""
    data = through_json(PLAN)
    place = data
    for step in path[:-1]:
        place = place[step]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return data


DAMAGED = {
    "nothing": None,
    "a list": [],
    "a format of tomorrow": edited("format", value=2),
    "no format": edited("format", value=None),
    "no mixtures": edited("mixtures", value=None),
    "mixtures of another kind": edited("mixtures", value={"a": 1}),
    "a field too many": edited("mixtures", 0, "flavour", value="up"),
    "a field too few": edited("mixtures", 0, "width", value=None),
    "a width in words": edited("mixtures", 0, "width", value="wide"),
    "a width of 0": edited("mixtures", 0, "width", value=0),
    "a router of tomorrow": edited("mixtures", 0, "router", value='{"kind": "oracle", "k": 2}'),
    "a router with an unknown field": edited("mixtures", 0, "router", value='{"kind": "softmax_topk", "k": 2, "mood": 1}'),
    "a router that is no JSON": edited("mixtures", 0, "router", value="softmax"),
    "a router of more experts than a token reaches": edited("mixtures", 0, "router", value=spell(SoftmaxTopK(3))),
    "a router of none": edited("mixtures", 0, "router", value=spell(SoftmaxTopK(0))),
    "a router for another number of experts": edited("mixtures", 1, "router", value=spell(ExpertChoice(4))),
    "inference of tomorrow": edited("mixtures", 1, "inference", value='{"kind": "oracle", "k": 5}'),
    "an expert of tomorrow": edited("mixtures", 0, "expert", value='{"kind": "oracle"}'),
    "a group that there is not": edited("mixtures", 0, "reach", 1, value=["audio"]),
    "a modality that reaches nothing": edited("mixtures", 0, "reach", 1, value=[]),
    "no reach": edited("mixtures", 0, "reach", value=[]),
    "reach of three modalities": edited("mixtures", 0, "reach", value=[["text"], ["image"], ["text"]]),
    "a group twice": edited("mixtures", 0, "groups", value=[["text", 3], ["text", 2]]),
    "an empty group": edited("mixtures", 0, "groups", value=[["text", 3], ["image", 0]]),
    "another thing to replace": edited("mixtures", 0, "replaces", value="attention"),
    "scoring of another kind": edited("mixtures", 0, "scoring", value="mood"),
    "groups without a modality": edited("modality", value={}),
    "a modality with a field too many": edited("modality", "flavour", value="up"),
    "a range with one end": edited("modality", "ranges", 1, value=[[40]]),
    "a reversed range": edited("modality", "ranges", 1, value=[[49, 40]]),
    "ranges of one modality": edited("modality", "ranges", value=[[[40, 49]]]),
    "a rest that there is not": edited("modality", "otherwise", value="audio"),
    "a depth of another kind": edited("depths", 0, value=[1]),
    "a depth of hidden 0": edited("depths", 0, "hidden", value=0),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_plan_is_refused(name):
    with pytest.raises(BadInput, match="no plan of inserted mixtures can be read") as caught:
        ModelPlan.from_json(DAMAGED[name], "config.json")
    assert caught.value.where == "config.json" and "make the checkpoint again" in caught.value.fix


def test_every_weight_by_its_name():
    assert PLAIN.shapes() == {"router.weight": (5, 16), "experts.w_in": (5, 12, 16), "experts.w_out": (5, 16, 6)}
    assert FULL.shapes() == {
        "router.weight": (5, 16), "router.bias": (5,), "router.correction": (5,),
        "router.aux_in": (7, 16), "router.aux_out": (5, 7),
        "experts.w_in": (5, 6, 16), "experts.b_in": (5, 6), "experts.w_out": (5, 16, 6), "experts.b_out": (5, 16),
        "shared.w_in": (4, 16), "shared.b_in": (4,), "shared.w_out": (16, 4), "shared.b_out": (16,),
    }  # fmt: skip
    assert NEURONS.shapes()["router.weight"] == (10, 16) and NEURONS.shapes()["router.bias"] == (10,)
    assert replace(FULL, expert=spell(GLU())).shapes()["shared.w_in"] == (8, 16)
    assert DEPTHS[0].shapes() == {"depth.router": (1, 16)}
    assert DEPTHS[1].shapes() == {"depth.router": (1, 16), "depth.aux_in": (3, 16), "depth.aux_out": (1, 3)}
    names = PLAN.shapes().keys()
    assert {"layers.0.mlp.experts.w_in", "layers.1.mlp.fc1.shared.b_out", "layers.1.depth.aux_in"} <= names
    assert len(names) == 3 + 13 + 4 + 1 + 3


def test_who_may_go_where():
    yes, no = True, False
    assert PLAIN.allowed().tolist() == [[yes, yes, yes, no, no], [no, no, no, yes, yes]]
    assert FULL.allowed().tolist() == [[yes, yes, yes, no, no], [yes] * 5]
    assert PLAIN.allowed().dtype == torch.bool
    assert TOWERS.mixtures[0].allowed() is None and ONE.mixtures[0].allowed() is None


def test_what_a_plan_is_made_of():
    assert (FULL.kind, FULL.routing, FULL.routing_of_inference) == (FFN("relu"), ExpertChoice(5), Auxiliary(5))
    assert PLAIN.routing_of_inference == PLAIN.routing == SoftmaxTopK(2, True)
    assert (PLAIN.experts, PLAIN.inner_width, FULL.inner_width) == (5, 12, 6)
