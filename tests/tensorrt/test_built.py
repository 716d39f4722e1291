"""What `mocomp build` refuses, what it leaves unproven and says so, and experts alone in engines of their own."""

import dataclasses
import json
import os
from itertools import pairwise

import numpy as np
import onnx_ir as ir
import pytest
import torch

from mocomp import report as reports
from mocomp.commands import build as command_of_build
from mocomp.commands.build import build
from mocomp.deployment import Deployment
from mocomp.errors import BadInput, MissingDependency, Unsupported, Usage
from mocomp.lowering import engine_runner, this_gpu
from mocomp.lowering.engine import Part
from mocomp.lowering.profiles import Profile
from mocomp.lowering.tensorrt_graphs import Lowered, merged, parts_in
from mocomp.opening import open_target
from mocomp.targets.tensorrt import MixtureAlone, Tensorrt
from mocomp.verify.inputs import CASES, GENERATOR, cases, left_out
from mocomp.weights.recipes import Literal, Tensor
from tests.tensorrt.conftest import DIGITS
from tests.tensorrt.test_engines import artifact  # noqa: F401


def edit(file, **said) -> None:
    """Write metadata into a graph whose weights lie beside it."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    onnx.helper.set_model_props(model, {prop.key: prop.value for prop in model.metadata_props} | said)
    onnx.save(model, file)


def test_cases_that_no_profile_takes_are_left_out_and_named():
    def only_prompts(batch, sequence, past):
        return past == 0

    from mocomp.models.interface import Interface

    interface = Interface.__new__(Interface)
    object.__setattr__(interface, "kind", "generator")
    kept = cases(interface, None, only_prompts)
    assert kept == [case for case in GENERATOR if not case.past] and len(kept) == 4
    assert "one token, past 9" in left_out(list(CASES["generator"]), kept)[0] and left_out(kept, kept) == []
    with pytest.raises(Usage, match="no profile takes"):
        cases(interface, None, lambda *sizes: False)


def test_a_prefill_profile_alone_says_what_it_does_not_prove(trt, artifact):  # noqa: F811
    made = artifact()
    built = build(made, {"profiles": ("prefill:sequence=1..64",)})
    assert built.parity is not None and built.parity.passed
    names = {case.name for case in built.parity.cases}
    assert "prompt of 23" in names and "one token, past 9" not in names
    assert any("one token, past 9" in note for note in built.parity.notes)


def test_experts_alone_run_in_pieces_of_the_profile(trt, artifact, monkeypatch):  # noqa: F811
    """In a folder of their own: an artifact may be one that nobody writes to. The decode graph runs single tokens."""
    made = artifact(engines="two")
    before = sorted(path.name for path in made.iterdir())
    mixture = reports.artifact_from(reports.read(made)).mixtures[0]
    assert mixture.limits == (1,)
    sizes = []
    own = engine_runner.build

    def noted(graph, plan, profiles, *others):
        sizes.append(profiles[0].ranges)
        assert made not in graph.parents and made.parent not in graph.parents[:1]
        own(graph, plan, profiles, *others)

    monkeypatch.setattr(engine_runner, "build", noted)
    runner = MixtureAlone(made, mixture, Deployment(engines="two"))
    assert [ranges["tokens"][2] for ranges in sizes] == [64, 1] and sorted(p.name for p in made.iterdir()) == before
    draw = np.random.default_rng(0)
    width = json.loads((DIGITS / "config.json").read_text())["hidden_size"]
    given = {
        "x": draw.standard_normal((130, width)).astype(np.float32),
        "ids": np.stack([np.arange(130) % 8, (np.arange(130) + 3) % 8], 1),
        "weights": draw.uniform(0.1, 1, (130, 2)).astype(np.float32),
    }
    emulated = MixtureAlone(made, mixture, Deployment(emulate=True))
    expected = emulated.run(given)["y"]
    np.testing.assert_allclose(runner.run(given)["y"], expected, atol=1e-5)
    one = {name: array[:1] for name, array in given.items()}
    np.testing.assert_allclose(runner.run(one)["y"], expected[:1], atol=1e-5)
    monkeypatch.setattr(emulated.graphs[1], "run_one", lambda inputs: {"y": np.zeros(1)})
    assert not emulated.run(one)["y"].any(), "a fault of the decode graph shows"


def test_the_graph_is_checked_for_the_gpu_that_is_here(trt, artifact, monkeypatch):  # noqa: F811
    made = artifact(gpu="sm_100")
    monkeypatch.setattr(command_of_build, "compute_capability", lambda: "sm_90")
    with pytest.raises(Unsupported, match="TRT_MoE"):
        build(made, {})
    assert not (made / "model.plan").exists()


HERE = [
    ({"gpu": "sm_100"}, "this GPU is sm_90"),
    ({"tensorrt": "11.0"}, "this is TensorRT 11.4"),
    ({"gpu": "sm_100", "hardware_compatibility_level": "ampere_plus"}, None),
    ({"tensorrt": "11.0", "version_compatible": True}, None),
    ({"gpu": "sm_90", "tensorrt": "11.4"}, None),
]


@pytest.mark.parametrize("options,words", HERE)
def test_an_engine_for_another_machine_is_not_built_here(trt, monkeypatch, options, words):
    monkeypatch.setattr(this_gpu, "compute_capability", lambda: "sm_90")
    monkeypatch.setattr(this_gpu, "tensorrt_release", lambda: "11.4")
    if words is None:
        assert Tensorrt(Deployment(**options)).missing() is None
        return
    with pytest.raises(MissingDependency, match=f"{words}.*(?s:.)*--emulate here"):
        open_target("tensorrt", Deployment(**options))


@pytest.mark.parametrize(
    "said,profile,words",
    [
        ({}, "a:sequence=1..100000", "more than the 64 positions"),
        ({"profiles": ("few:sequence=1..4,past=0..60",)}, "a:sequence=1..5", "for 4 tokens at most"),
    ],
)
def test_a_profile_beyond_what_the_graph_was_made_for_is_refused(emulated, said, profile, words):
    made = emulated("digits", **said).directory
    with pytest.raises(Usage, match=words):
        parts_in(made, [profile])
    assert parts_in(made, ["a:sequence=1..4"])


@pytest.mark.parametrize("said", [{"mocomp.profiles": "nonsense"}, {"mocomp.positions": "-1"}])
def test_metadata_that_is_damaged_is_bad_input(artifact, said):  # noqa: F811
    made = artifact()
    edit(made / "model.onnx", **said)
    with pytest.raises(BadInput, match="metadata"):
        parts_in(made, ["a:sequence=1"] if "mocomp.positions" in said else [])


@pytest.mark.parametrize("kind", ["file", "folder", "pipe"])
def test_links_in_an_artifact_are_not_followed(trt, artifact, tmp_path, kind):  # noqa: F811
    made = artifact()
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("mine")
    if kind == "pipe":
        os.mkfifo(made / "odd")
    else:
        (made / "odd").symlink_to(tmp_path / "outside" / ("secret" if kind == "file" else ""))
    with pytest.raises(BadInput, match="odd: it is"):
        build(made, {})


def test_a_stripped_plan_is_not_for_triton(trt, artifact):  # noqa: F811
    with pytest.raises(Usage, match="Triton"):
        Tensorrt(Deployment(strip_plan=True, triton=True))
    with pytest.raises(Usage, match="Triton"):
        build(artifact(), {"strip_plan": True, "triton": True})


def test_the_source_is_opened_before_anything_is_built(trt, artifact, monkeypatch):  # noqa: F811
    made = artifact()
    data = json.loads((made / "mocomp.json").read_text())
    name = next(iter(data["source_files"]))
    data["source_files"][name] += 1
    (made / "mocomp.json").write_text(json.dumps(data))
    monkeypatch.setattr(command_of_build.engine_files, "build_all", lambda *given: pytest.fail("it was built"))
    with pytest.raises(BadInput, match="not the file that the artifact was made from"):
        build(made, {})


def test_trust_reaches_the_source(trt, artifact, monkeypatch):  # noqa: F811
    seen = []

    def noted(directory, reference, trust):
        seen.append(trust)
        raise BadInput("enough")

    monkeypatch.setattr(command_of_build, "opened", noted)
    made = artifact()
    for trust in (False, True):
        with pytest.raises(BadInput, match="enough"):
            build(made, {}, trust_remote_code=trust)
    assert seen == [False, True]


def test_one_name_is_one_weight():
    def graph(recipe):
        part = Part("model.onnx", "model.plan", (Profile("a", {}),))
        return Lowered(part, ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), {"w": recipe}, [], "dense", {})

    first = Tensor((2, 3), torch.float32, "w")
    literal = Literal((1,), torch.float32, torch.ones(1))
    assert merged([graph(first), graph(dataclasses.replace(first))]) == {"w": first}
    assert merged([graph(literal), graph(Literal((1,), torch.float32, torch.ones(1)))])
    others = [
        Tensor((3, 2), torch.float32, "w"),
        Tensor((2, 3), torch.float16, "w"),
        Tensor((2, 3), torch.float32, "v"),
        literal,
    ]
    for one, other in [
        *((first, other) for other in others),
        *pairwise([literal, Literal((1,), torch.float32, torch.zeros(1))]),
    ]:
        with pytest.raises(AssertionError, match="one weight"):
            merged([graph(one), graph(other)])
