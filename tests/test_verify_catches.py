"""Parity catches what goes wrong in conversions: each fault is planted in an otherwise right one, and must not pass."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, inline
from mocomp.ir.specs import parse, spell
from mocomp.models.huggingface import Traced
from mocomp.models.source import open_source
from mocomp.verify.inputs import arrays, cases
from mocomp.verify.parity import Parity, prove
from mocomp.verify.reference import Reference
from mocomp.verify.tolerance import TABLE
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Recipe
from mocomp.weights.writer import Writer
from tests import checkpoints
from tests.stages import TARGET, advance, load_traced

Plant = Callable[[Program], None]
SQUARE = {"moe_intermediate_size": checkpoints.HIDDEN, "num_experts_per_tok": 3}
W_IN, W_OUT = 3, 5  # arguments of mocomp::experts
FIRST_IMAGE_ID = 64
LONGEST = 64
"""Inputs longer than this are left out, for speed."""


@dataclass(frozen=True)
class Conversion:
    """A traced checkpoint with the original beside it, to be lowered any number of times."""

    source: Path
    traced: Traced
    reference: Reference

    def prove(self, directory: Path, plant: Plant) -> Parity:
        """Convert once more, with `plant` let loose on the program between two passes, and judge the result."""
        program = self.traced.program.copy()
        advance(program, "fold_router_scale")
        plant(program)
        advance(program, "expand_routes", after="fold_router_scale")
        with Checkpoint(self.source) as opened:
            artifact = TARGET.lower(program, directory, Writer(opened.read))
        return prove(self.reference.baseline(LONGEST), TARGET, directory, artifact.mixtures, TABLE["onnxruntime", "float32"])


@pytest.fixture(scope="module")
def conversion(checkpoint) -> Callable[..., Conversion]:
    """conversion(family, **changes): of a checkpoint whose experts are square and chosen three at a time."""

    @cache
    def made(family: str, **changes: Any) -> Conversion:
        source = checkpoint(family, **SQUARE, **changes)
        traced = load_traced(source)
        return Conversion(source, traced, Reference.load(open_source(str(source)), traced.interface))

    return made


def no_fault(program: Program) -> None:
    """A conversion as it should be."""


def edit_bank(**edits: Callable[[Recipe], Recipe]) -> Plant:
    """Edit the recipes of the last layer's experts, `w_in` or `w_out`."""

    def plant(program: Program) -> None:
        names, experts = dict(program.weights()), calls(program, MOCOMP.experts.default)[-1]
        for argument, edit in edits.items():
            name = names[experts.args[{"w_in": W_IN, "w_out": W_OUT}[argument]]]
            program.recipes[name] = edit(program.recipes[name])

    return plant


def order(*sources: int) -> Callable[[Recipe], Recipe]:
    """Expert i gets the weights of expert sources[i]; those not told keep their own."""

    def edit(bank: Recipe) -> Recipe:
        places = (*sources, *range(len(sources), bank.shape[0]))
        return recipes.concat([recipes.slice_of(bank, 0, i, i + 1) for i in places], 0)

    return edit


def exchange_halves(bank: Recipe) -> Recipe:
    half = bank.shape[1] // 2
    return recipes.concat([recipes.slice_of(bank, 1, half, 2 * half), recipes.slice_of(bank, 1, 0, half)], 1)


def transpose(bank: Recipe) -> Recipe:
    return recipes.permute(bank, (0, 2, 1))


def edit_router(**changes: Any) -> Plant:
    """Change parameters of the last layer's router."""

    def plant(program: Program) -> None:
        route = calls(program, MOCOMP.route.default)[-1]
        route.update_arg(2, spell(replace(parse("mocomp.routers", "Router", route.args[2]), **changes)))

    return plant


def silence_router(program: Program) -> None:
    """The last layer's router gives every expert the same."""
    name = [name for _, name in program.weights() if name.endswith("gate.weight")][-1]
    weight = program.recipes[name]
    program.recipes[name] = recipes.literal(torch.zeros(weight.shape))


def shift_positions(program: Program) -> None:
    """Tokens behind a past stand one position further on than they should."""

    def shifted(positions: Tensor, past: Tensor) -> Tensor:
        return positions + torch.ones_like(past[0, 0, :, 0]).sum().clamp(max=1.0)

    (past,) = [node for node in program.graph.nodes if node.name == "past_key_values_0"]
    (frequencies,) = [node for node, name in program.weights() if name.endswith("rotary_emb.inv_freq")]
    (product,) = frequencies.users
    (positions,) = [node for node in product.all_input_nodes if node is not frequencies]
    product.replace_input_with(positions, inline(program, product, shifted, [positions, past]))


EXPERTS, CHOICE, LOGITS, FLIPPED = "experts off by", "tokens chose other experts", "logits off by", "some expert flipped"
FAULTS = {
    "two experts swapped": ("qwen3_moe", edit_bank(w_in=order(1, 0), w_out=order(1, 0)), EXPERTS),
    "one expert's weights in place of another's": ("qwen3_moe", edit_bank(w_out=order(1, 1)), EXPERTS),
    "gate and up rows exchanged": ("qwen3_moe", edit_bank(w_in=exchange_halves), EXPERTS),
    "transposed weight": ("qwen3_moe", edit_bank(w_out=transpose), EXPERTS),
    "one expert less chosen": ("qwen3_moe", edit_router(k=2), CHOICE),
    "weights not divided by their sum": ("qwen3_moe", edit_router(normalize=False), LOGITS),
    "dropped routing scale": ("deepseek_v3", edit_router(scale=1.0), LOGITS),
    "groups of experts ignored": ("deepseek_v3", edit_router(groups=1, groups_kept=1), CHOICE),
    "router that tells nothing apart": ("qwen3_moe", silence_router, FLIPPED),
    "shifted cache position": ("qwen3_moe", shift_positions, LOGITS),
}


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_without_a_fault_it_passes(conversion, family, tmp_path):
    assert conversion(family).prove(tmp_path, no_fault).failures == []


@pytest.mark.parametrize("fault", FAULTS)
def test_catches(conversion, fault, tmp_path):
    family, plant, symptom = FAULTS[fault]
    parity = conversion(family).prove(tmp_path, plant)
    assert not parity.passed and any(symptom in failure for failure in parity.failures), parity.failures


def test_catches_a_fault_in_an_expert_that_no_input_reaches(conversion, tmp_path):
    made = conversion("qwen3_moe", experts=128)
    interface = made.traced.interface
    runs = [made.reference.observe(case, arrays(interface, case, seed=0)) for case in cases(interface, LONGEST)]
    reached = {expert for run in runs for expert in run.routed["model.layers.1.mlp.experts"].ids.flat}
    idle = min(set(range(128)) - reached)
    parity = made.prove(tmp_path, edit_bank(w_out=order(*range(idle), (idle + 1) % 128)))
    assert [failure for failure in parity.failures if EXPERTS not in failure] == [] and not parity.passed


def modality_table(experts: int) -> Tensor:
    """[M, E] of 0 and -inf: the first half of the experts is for text, the second for images."""
    return torch.where(torch.arange(2)[:, None] == torch.arange(experts) // (experts // 2), 0.0, float("-inf"))


def mask_modalities(first_image_id: int = FIRST_IMAGE_ID, image: int = 1) -> Plant:
    """logits + table[modality of each token], in every layer; `image` is the row of the table for images."""

    def masked(logits: Tensor, input_ids: Tensor) -> Tensor:
        is_image = (input_ids.reshape(-1) >= first_image_id).long()
        return logits + modality_table(logits.shape[1])[is_image if image else 1 - is_image]

    def plant(program: Program) -> None:
        (input_ids,) = [node for node in program.graph.nodes if node.name == "input_ids"]
        for route in calls(program, MOCOMP.route.default):
            route.update_arg(0, inline(program, route, masked, [route.args[0], input_ids]))

    return plant


def rerouted(source: Path) -> Any:
    """Qwen3-MoE whose gates, by hooks of the test's own, leave each token the experts of its modality alone."""
    model = Reference.load(open_source(str(source)), load_traced(source).interface).model
    seen: dict[str, Tensor] = {}

    def remember(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen["is_image"] = kwargs["input_ids"].reshape(-1) >= FIRST_IMAGE_ID

    def reroute(gate: Any, args: tuple, output: tuple) -> tuple[Tensor, Tensor, Tensor]:
        logits = output[0] + modality_table(gate.num_experts)[seen["is_image"].long()]
        weights, ids = torch.softmax(logits, -1).topk(gate.top_k, -1)
        return logits, weights / weights.sum(-1, keepdim=True), ids

    model.register_forward_pre_hook(remember, with_kwargs=True)
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(reroute)
    return model


@pytest.fixture(scope="module")
def by_modality(conversion) -> Conversion:
    """A conversion beside that model."""
    plain = conversion("qwen3_moe")
    return replace(plain, reference=Reference(rerouted(plain.source), plain.traced.interface))


WRONG_MASKS = {
    "forgotten": no_fault,
    "for the other modality": mask_modalities(image=0),
    "one token off": mask_modalities(FIRST_IMAGE_ID + 1),
}


def test_right_modality_mask_passes(by_modality, tmp_path):
    assert by_modality.prove(tmp_path, mask_modalities()).failures == []


@pytest.mark.parametrize("fault", WRONG_MASKS)
def test_catches_modality_mask(by_modality, fault, tmp_path):
    assert any(CHOICE in failure for failure in by_modality.prove(tmp_path, WRONG_MASKS[fault]).failures)
