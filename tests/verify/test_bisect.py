"""Every fault that parity catches is pinned to the pass it was planted in, or to the artifact, and to its layer."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls
from mocomp.ir.stages import Stage as Legal
from mocomp.models.huggingface import Traced
from mocomp.models.source import open_source
from mocomp.passes import Changes, Pass, run
from mocomp.pipeline import explicit, fitted
from mocomp.targets import Artifact
from mocomp.verify.artifact_trail import follow_artifact, owners_of, places_of, without_mistakes
from mocomp.verify.bisect import ARTIFACT, TRACE, Bisection, Stage, bisect
from mocomp.verify.inputs import arrays, cases
from mocomp.verify.judging import LayerError, judge
from mocomp.verify.program_trail import Values
from mocomp.verify.reference import Reference
from mocomp.verify.tolerance import TABLE
from mocomp.verify.trail import OUTPUTS, Trail, follow
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.writer import Writer
from tests.stages import TARGET, load_traced
from tests.test_verify_catches import (
    FAULTS,
    FIRST_IMAGE_ID,
    LONGEST,
    SQUARE,
    W_IN,
    W_OUT,
    Plant,
    exchange_halves,
    mask_modalities,
    order,
    rerouted,
    shift_positions,
    transpose,
)

LIMIT = TABLE["onnxruntime", "float32"]
LAST, FIRST = "model.layers.1", "model.layers.0"


@dataclass(frozen=True)
class Planted(Pass):
    """A pass of a test's own that does damage."""

    name: ClassVar[str] = "planted"
    needs: ClassVar[Legal] = Legal.ROUTED
    gives: ClassVar[Legal] = Legal.ROUTED
    plant: Plant = field(repr=False)

    def apply(self, program: Program) -> Changes:
        self.plant(program)
        return Changes(1)


@dataclass(frozen=True)
class Known:
    """A traced checkpoint with the trail of the original, to be bisected any number of times."""

    source: Path
    traced: Traced
    trail: Trail
    values: Values

    def stages(self, steps: list[Pass], program: Program | None = None, start: str = TRACE) -> list[Stage]:
        """The stages up to the first that leaves the tolerance, or all."""
        program, found = program or self.traced.program.copy(), []
        for stage in bisect(program, steps, self.trail, self.traced.interface, self.values, LIMIT, start):
            found.append(stage)
            if stage.first is not None:
                break
        return found

    def culprit_behind_routing(self, plant: Plant) -> tuple[str | None, str | None]:
        """The culprit of a conversion with a fault planted behind the passes of `explicit`, the last of which is judged."""
        program, before = self.traced.program.copy(), explicit([])
        for step in before:
            run(step, program)
        return self.culprit([Planted(plant), *fitted(TARGET, {})], program=program, start=before[-1].name)

    def culprit(self, steps: list[Pass], **more: Any) -> tuple[str | None, str | None]:
        """(first pass, first layer) that leave the tolerance."""
        found = Bisection(self.stages(steps, **more), None, LIMIT, "")
        return found.first_pass, found.first_layer


def steps_with(*planted: Pass, behind: str = "fold_router_scale") -> list[Pass]:
    """The passes of a conversion, with others behind one of them."""
    steps = [*explicit([]), *fitted(TARGET, {})]
    at = [step.name for step in steps].index(behind) + 1
    return [*steps[:at], *planted, *steps[at:]]


def trail_of(reference: Reference) -> Trail:
    interface = reference.interface
    return follow(reference, [(case, arrays(interface, case, seed=0)) for case in cases(interface, LONGEST)])


@pytest.fixture(scope="module")
def known(checkpoint) -> Callable[..., Known]:
    """known(family): of a checkpoint whose experts are square and chosen three at a time, where it has any."""

    @cache
    def made(family: str, mixtures: bool = True, **changes: Any) -> Known:
        source = checkpoint(family, **SQUARE | changes if mixtures else changes)
        traced = load_traced(source)
        trail = trail_of(Reference.load(open_source(str(source)), traced.interface))
        return Known(source, traced, trail, Values(Checkpoint(source).read))

    return made


@pytest.mark.parametrize(("family", "mixtures"), [("qwen3_moe", True), ("deepseek_v3", True), ("bert", False), ("vit", False)])
def test_without_a_fault_nothing_is_named(known, family, mixtures):
    made = known(family, mixtures)
    stages = made.stages(steps_with())
    found = Bisection(stages, None, LIMIT, "")
    assert found.passed and [stage.name for stage in stages] == [TRACE, *(step.name for step in steps_with())]
    assert "nothing leaves the tolerance" in found.words
    for stage in stages:  # all was looked at, and it is no coincidence that it agrees
        assert [layer.layer for layer in stage.layers] == [*made.trail.layers, OUTPUTS]
        assert 0.0 < stage.error < 1e-5
    choosing = [layer for layer in stages[-1].layers if layer.layer == LAST]
    assert not mixtures or (choosing[0].tokens > 100 and choosing[0].experts < 1e-5)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_a_pass_is_pinned_to_it_and_to_its_layer(known, fault):
    family, plant, _ = FAULTS[fault]
    layer = FIRST if plant is shift_positions else LAST
    assert known(family).culprit_behind_routing(plant) == ("planted", layer)


@pytest.mark.parametrize("behind", ["fuse_routing", "expand_experts"])
def test_it_is_pinned_wherever_in_the_pipeline_it_is(known, behind):
    _, plant, _ = FAULTS["two experts swapped"]
    stages = known("qwen3_moe").stages(steps_with(Planted(plant), behind=behind))
    assert [stage.name for stage in stages][-2:] == [behind, "planted"] and stages[-1].first.layer == LAST


def in_first_layer(edit: Callable[[Any], Any], argument: int) -> Plant:
    """Edit the recipe of a weight of the first layer's experts."""

    def plant(program: Program) -> None:
        name = dict(program.weights())[calls(program, MOCOMP.experts.default)[0].args[argument]]
        program.recipes[name] = edit(program.recipes[name])

    return plant


def silence_first_router(program: Program) -> None:
    name = next(name for _, name in program.weights() if name.endswith("gate.weight"))
    program.recipes[name] = recipes.literal(torch.zeros(program.recipes[name].shape))


def silence_first_attention(program: Program) -> None:
    name = next(name for _, name in program.weights() if name.endswith("o_proj.weight"))
    program.recipes[name] = recipes.literal(torch.zeros(program.recipes[name].shape))


IN_FIRST_LAYER = {
    "an expert in place of another": in_first_layer(order(1, 1), W_OUT),
    "gate and up rows exchanged": in_first_layer(exchange_halves, W_IN),
    "transposed weight": in_first_layer(transpose, W_OUT),
    "router that tells nothing apart": silence_first_router,
    "attention that says nothing": silence_first_attention,
}


@pytest.mark.parametrize("fault", IN_FIRST_LAYER)
def test_a_fault_of_the_first_layer_is_pinned_to_it(known, fault):
    assert known("qwen3_moe").culprit_behind_routing(IN_FIRST_LAYER[fault]) == ("planted", FIRST)


def test_the_words_say_which_part_of_the_layer_is_wrong(known):
    told = {
        "an expert in place of another": "its experts alone",
        "router that tells nothing apart": "chose other experts",
        "attention that says nothing": "what comes to its experts is off",
    }
    for fault, words in told.items():
        stages = known("qwen3_moe").stages(steps_with(Planted(IN_FIRST_LAYER[fault])))
        said = Bisection(stages, None, LIMIT, "").words
        assert words in said and "pass planted" in said and f"first in {FIRST}" in said and "(after fold_router_scale: " in said


def test_an_expert_that_no_input_reaches_is_judged_too(known):
    made = known("qwen3_moe", experts=128)
    last = f"{LAST}.mlp.experts"
    reached = {expert for ask in made.trail.asked for call in ask.calls for expert in call.chosen[last].ids.flat}
    idle = min(set(range(128)) - reached)

    def swap(program: Program) -> None:
        name = dict(program.weights())[calls(program, MOCOMP.experts.default)[-1].args[W_OUT]]
        program.recipes[name] = order(*range(idle), (idle + 1) % 128)(program.recipes[name])

    stage = made.stages(steps_with(Planted(swap)))[-1]
    assert stage.name == "planted" and stage.first is not None and stage.first.layer == LAST
    assert stage.first.error < 1e-5 < stage.first.experts


def test_a_program_that_cannot_be_run_is_pinned_to_its_layer(known):
    def cut(program: Program) -> None:
        names = {name: node for node, name in program.weights()}
        (projection,) = names[f"{LAST}.self_attn.o_proj.weight"].users
        projection.args[0].update_arg(1, [7, 7, 7])

    stage = known("qwen3_moe").stages(steps_with(Planted(cut)))[-1]
    assert stage.name == "planted" and stage.first is not None and stage.first.layer == LAST
    assert "cannot be run" in stage.first.fault


def test_a_fault_of_the_trace_is_no_pass(known):
    made = known("qwen3_moe")
    program = made.traced.program.copy()
    in_first_layer(order(1, 0), W_IN)(program)
    assert made.culprit(steps_with(), program=program) == (TRACE, FIRST)


@pytest.fixture(scope="module")
def by_modality(known) -> Known:
    """Qwen3-MoE whose gates leave each token the experts of its modality alone."""
    plain = known("qwen3_moe")
    return replace(plain, trail=trail_of(Reference(rerouted(plain.source), plain.traced.interface)))


def unmask(program: Program) -> None:
    """Take the mask away again: the routes read the plain logits."""
    for route in calls(program, MOCOMP.route.default):
        route.update_arg(0, route.args[0].args[0])


def remask(first_image_id: int, image: int) -> Plant:
    """Another mask in place of the one that is there."""

    def plant(program: Program) -> None:
        unmask(program)
        mask_modalities(first_image_id, image)(program)

    return plant


WRONG_MASKS = {
    "forgotten": unmask,
    "for the other modality": remask(FIRST_IMAGE_ID, 0),
    "one token off": remask(FIRST_IMAGE_ID + 1, 1),
}


@pytest.mark.parametrize("fault", WRONG_MASKS)
def test_a_wrong_modality_mask_is_pinned_to_its_pass(by_modality, fault):
    program = by_modality.traced.program.copy()
    for step in explicit([]):
        run(step, program)
    mask_modalities()(program)  # as it should be, to begin with
    rest = [Planted(WRONG_MASKS[fault]), *fitted(TARGET, {})]
    assert by_modality.culprit(rest, program=program, start="masked") == ("planted", FIRST)


@dataclass(frozen=True)
class Lowered:
    """A right artifact, and what is needed to look into it."""

    known: Known
    directory: Path
    artifact: Artifact
    owners: dict[str, str]

    def judge(self, directory: Path) -> Stage:
        followed = follow_artifact(TARGET, directory, self.artifact, self.known.trail, self.known.traced.interface, self.owners)
        layers, mistaken = without_mistakes(judge(followed, self.known.trail, LIMIT), LIMIT)
        assert mistaken == []
        return Stage(ARTIFACT, layers)


@pytest.fixture(scope="module")
def lowered(known, tmp_path_factory) -> Callable[[str], Lowered]:
    @cache
    def made(family: str) -> Lowered:
        found, directory = known(family, family not in ("bert", "vit")), tmp_path_factory.mktemp(family)
        program = found.traced.program.copy()
        for step in steps_with():
            run(step, program)
        with Checkpoint(found.source) as opened:
            artifact = TARGET.lower(program, directory, Writer(opened.read))
        return Lowered(found, directory, artifact, owners_of(program, found.trail))

    return made


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "bert", "vit"])
def test_each_layer_of_a_right_artifact_is_found_and_right(lowered, family):
    made = lowered(family)
    stage = made.judge(made.directory)
    assert stage.first is None and stage.error < 1e-5
    assert [layer.layer for layer in stage.layers] == [*made.known.trail.layers, OUTPUTS]
    assert set(places_of(ir.load(made.directory / "model.onnx"), made.known.trail, made.owners)) == set(made.known.trail.layers)


def damaged(lowered: Lowered, directory: Path, weight: str, damage: Callable[[np.ndarray], np.ndarray]) -> Path:
    """A copy of an artifact in which one weight, as it lies on disk, is another."""
    shutil.copytree(lowered.directory, directory, dirs_exist_ok=True)
    value = ir.load(directory / "model.onnx").graph.initializers[weight].const_value
    assert isinstance(value, ir.ExternalTensor) and value.offset is not None
    changed = damage(value.numpy().copy())
    with (directory / "model.onnx.data").open("r+b") as file:
        file.seek(value.offset)
        file.write(changed.astype(np.float32).tobytes())
    return directory


IN_BYTES = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight", "self_attn.o_proj.weight")


def swapped(array: np.ndarray) -> np.ndarray:
    """The first two experts, or rows, exchanged."""
    array[[0, 1]] = array[[1, 0]]
    return array


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("weight", IN_BYTES)
def test_a_fault_in_the_bytes_of_an_artifact_is_pinned_to_it_and_to_its_layer(lowered, weight, layer, tmp_path):
    made = lowered("qwen3_moe")
    stage = made.judge(damaged(made, tmp_path, f"model.layers.{layer}.{weight}", swapped))
    found = Bisection([Stage("before", [LayerError(FIRST, 1e-7)])], stage, LIMIT, "")
    assert (found.first_pass, found.first_layer) == (ARTIFACT, f"model.layers.{layer}")
    assert "the artifact, and no pass, leaves the tolerance first in" in found.words


def test_a_fault_in_an_encoder_is_pinned_to_its_layer(lowered, tmp_path):
    made = lowered("bert")
    stage = made.judge(damaged(made, tmp_path, "encoder.layer.1.output.dense.weight", swapped))
    assert stage.first is not None and stage.first.layer == "encoder.layer.1"


def test_a_value_taken_for_another_accuses_nobody():
    """What is wrong in a layer is wrong behind it; where it is not, the value was not what the layer gives."""
    wrong = {"error": 0.5, "fault": "off"}
    layers = [LayerError("a"), LayerError("b", **wrong), LayerError("c"), LayerError("d", **wrong)]
    kept, mistaken = without_mistakes(layers, LIMIT)
    assert [layer.layer for layer in kept] == ["a", "c", "d"] and mistaken == ["b"]
