"""A proof in parts says what the whole proof says, of every kind of artifact, and finds what is wrong in any part of one."""

import json
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest

from mocomp.errors import Unsupported, Usage
from mocomp.executors import Executor
from mocomp.ir.program import Program
from mocomp.models.source import open_source
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.resources import Resources
from mocomp.verify import memory
from mocomp.verify.converted import Converted
from mocomp.verify.in_parts import verify_in_parts
from mocomp.verify.verdict import verify
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Recipe
from mocomp.weights.writer import Writer
from tests.stages import TARGET, advance, load_traced
from tests.test_verify_catches import FAULTS, SQUARE, Plant, no_fault

SMALL = 1 << 14
"""Bytes of weights of a part: about every product is one."""
WAYS = {
    "float32": ("qwen3_moe", {}),
    "float16, emulated": ("deepseek_v3", {"device": "cuda", "dtype": "float16", "emulate": True}),
    "int4": ("qwen3_moe", {"quantize": "int4", "group_size": 16}),
    "standard, int4": ("gpt_oss", {"target": "onnx", "quantize": "int4", "group_size": 16}),
    "pools": ("ernie4_5_vl_moe", {}),
    "dense": ("bert", {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_says_what_the_whole_proof_says(checkpoint, tmp_path, way):
    family, options = WAYS[way]
    source, directory = checkpoint(family), tmp_path / "made"
    report = convert(str(source), directory, ConvertOptions(parity="off", **options))
    target = open_target(options.get("target", "onnxruntime"), ConvertOptions(**options))
    made = Converted(open_source(str(source)), report.interface, target, directory, report.artifact)
    costs, own_costs = [], []
    whole, parts = verify(made, 0, costs), verify_in_parts(made, 0, own_costs, limit=SMALL)
    assert parts.failures == [] and (whole.how, parts.how) == ("full", "blocks")
    assert [case.name for case in parts.cases] == [case.name for case in whole.cases]
    assert abs(parts.worst - whole.worst) < 1e-5
    for mine, other in zip(parts.layers, whole.layers, strict=True):
        assert (mine.layer, mine.reached, mine.experts) == (other.layer, other.reached, other.experts)
        assert (mine.tokens > other.tokens) == (mine.alone is not None) and mine.experts_error < 1e-6
    for mine, other in zip(own_costs, costs, strict=True):
        assert (mine.agreement, mine.tokens) == (other.agreement, other.tokens)
        assert np.isclose(mine.error, other.error, 1e-3) and np.isclose(mine.experts_error, other.experts_error, 1e-3)


def swap_rows(name: str) -> Plant:
    """Exchange the first rows of a weight for its last."""

    def swapped(weight: Recipe) -> Recipe:
        half = weight.shape[0] // 2
        return recipes.concat([recipes.slice_of(weight, 0, half, 2 * half), recipes.slice_of(weight, 0, 0, half)], 0)

    def plant(program: Program) -> None:
        found = [own for _, own in program.weights() if own.endswith(name)][-1]
        program.recipes[found] = swapped(program.recipes[found])

    return plant


ELSEWHERE = {
    "attention": ("qwen3_moe", swap_rows("self_attn.k_proj.weight")),
    "norm": ("qwen3_moe", swap_rows("post_attention_layernorm.weight")),
    "head": ("qwen3_moe", swap_rows("lm_head.weight")),
    "embedding": ("qwen3_moe", swap_rows("embed_tokens.weight")),
}
NAMED = {
    "one expert less chosen": "475 of 475 tokens chose",
    "two experts swapped": "alone off by",
    "transposed weight": "experts off by",
}
"""What the block alone is found to do by some of the faults that the whole proof has to catch."""
OF_ROUTES = ("dropped routing scale", "shifted cache position")
PLANTED = ELSEWHERE | {name: FAULTS[name][:2] for name in (*NAMED, *OF_ROUTES)}


@pytest.fixture(scope="module")
def proven(checkpoint, tmp_path_factory) -> Callable:
    """proven(family, plant): the proof in parts of a conversion into which a fault was planted."""

    @cache
    def folded(family: str) -> tuple:
        source = checkpoint(family, **SQUARE)
        traced = load_traced(source)
        advance(traced.program, "fold_router_scale")
        return source, traced

    def made(family: str, plant: Plant) -> object:
        directory, (source, traced) = tmp_path_factory.mktemp("planted"), folded(family)
        program = traced.program.copy()
        plant(program)
        advance(program, "expand_routes", after="fold_router_scale")
        with Checkpoint(source) as opened:
            artifact = TARGET.lower(program, directory, Writer(opened.read))
        converted = Converted(open_source(str(source)), traced.interface, TARGET, directory, artifact)
        return verify_in_parts(converted, 0, [], limit=SMALL)

    return made


def test_without_a_fault_it_passes(proven):
    parity = proven("deepseek_v3", no_fault)
    assert parity.failures == [] and all(layer.alone is not None for layer in parity.layers)


@pytest.mark.parametrize("fault", PLANTED)
def test_catches(proven, fault):
    """And a block alone names its layer, whatever was chosen before it: the layers before are right, and none is named."""
    failures = proven(*PLANTED[fault]).failures
    assert failures
    if symptom := NAMED.get(fault):
        assert any(f"layers.1.mlp.experts: {symptom}" in failure for failure in failures), failures
        assert not any("layers.0." in failure for failure in failures)


class Elsewhere(Executor):
    """Runs tasks after all of them were handed over, the last first."""

    name, summary = "elsewhere", ""

    def workers(self):
        raise NotImplementedError

    def run(self, tasks):
        yield from [(task, task()) for task in reversed(list(tasks))]


def test_another_executor_gives_the_same(converted):
    made = converted("qwen3_moe")
    whole = Converted(open_source(str(made.source)), made.report.interface, TARGET, made.directory, made.report.artifact)
    here, there = (verify_in_parts(whole, 0, [], executor=executor) for executor in (None, Elsewhere()))
    assert [vars(layer) for layer in here.layers] == [vars(layer) for layer in there.layers]


MODEL = 10**8
"""Parameters: 0.88 GB while they are loaded."""


@pytest.mark.parametrize(
    ("free", "said", "how"),
    [
        (10**9, None, "full"),
        (8 * 10**8, None, "blocks"),
        (10**9, "2GB", "full"),
        (10**9, "500MB", "blocks"),
        (None, None, "full"),
    ],
)
def test_parts_are_chosen_where_the_whole_does_not_fit(monkeypatch, free, said, how):
    monkeypatch.setattr(memory, "available", lambda: free)
    resources = Resources(memory=said) if said else Resources()
    chosen, notes = memory.way_to_prove("full", MODEL, "here", resources, in_parts=True)
    assert chosen == how and bool(notes) == (how == "blocks")


def test_what_is_said_counts_also_where_it_is_the_default(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**10)
    asked = [memory.way_to_prove("full", 2 * MODEL, "here", own, True)[0] for own in (Resources(), Resources(memory="1GB"))]
    assert asked == ["full", "blocks"] and Resources().nbytes() == Resources(memory="1GB").nbytes() == 10**9


def test_what_is_asked_for_is_done_and_what_cannot_be_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 10**8)
    assert memory.way_to_prove("off", MODEL, "here", None, in_parts=True) == ("off", [])
    assert memory.way_to_prove("blocks", 1, "here", None, in_parts=True) == ("blocks", [])
    with pytest.raises(Unsupported, match="no graph"):
        memory.way_to_prove("blocks", 1, "here", None, in_parts=False)
    with pytest.raises(Unsupported, match="GB are free"):
        memory.way_to_prove("full", MODEL, "here", None, in_parts=False)


def test_commands_prove_in_parts_and_say_so(command, checkpoint, tmp_path):
    made = tmp_path / "made"
    done = command("convert", checkpoint("qwen3_moe"), "-o", made, "--parity", "blocks")
    assert done.code == 0 and "in parts" in done.out
    parity = json.loads((made / "mocomp.json").read_text())["parity"]
    assert parity["how"] == "blocks" and "in parts" in parity["notes"][0]
    assert "in parts" in (made / "report.html").read_text()
    again = command("parity", made, "--blocks", "--json")
    assert again.code == 0 and json.loads(again.out)["how"] == "blocks"
    assert command("parity", made, "--blocks", "--text", "1 2").code == Usage.exit_code
    small = command("parity", made, "--memory", "100KB", "--json")
    assert json.loads(small.out)["how"] == "blocks"


def test_a_wrong_artifact_is_not_kept(checkpoint, tmp_path):
    source = checkpoint("qwen3_moe")
    made = tmp_path / "made"
    convert(str(source), made, ConvertOptions(parity="off"))
    data = np.memmap(made / "model.onnx.data", np.float32, "r+")
    data[: len(data) // 2] *= 1.5
    data.flush()
    from mocomp.commands.parity import ParityOptions, parity

    assert not parity(made, None, ParityOptions(parity="blocks")).passed
