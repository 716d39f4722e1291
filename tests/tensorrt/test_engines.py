"""Engines built and run through Polygraphy, on the recorder in the place of TensorRT."""

import dataclasses
import json

import numpy as np
import pytest

from mocomp.commands.build import build
from mocomp.deployment import Deployment, Engine
from mocomp.errors import BadInput, MissingDependency, ParityFailed, Unsupported, Usage
from mocomp.lowering import engine, engine_files, engine_session
from mocomp.lowering.engine_files import watched
from mocomp.lowering.engine_runner import EngineRunner
from mocomp.lowering.onnx_session import load
from mocomp.lowering.tensorrt_graphs import parts_in
from mocomp.opening import named_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import artifact_from
from tests.tensorrt.conftest import DIGITS


@pytest.fixture
def artifact(emulated, tmp_path):
    """A copy of the artifact of digits, to build in."""
    import shutil

    def copied(**options):
        place = tmp_path / "artifact"
        shutil.copytree(emulated("digits", **options).directory, place)
        return place

    return copied


def flags(trt) -> set[str]:
    return {flag.name for (flag,) in trt.of("IBuilderConfig.set_flag")}


def test_convert_builds_an_engine_and_proves_it(trt, tmp_path):
    """Polygraphy and the recorder are between the graph and its proof, and every profile is run."""
    report = convert(str(DIGITS), tmp_path / "made", ConvertOptions(target="tensorrt", gpu="sm_90"))
    assert report.parity is not None and report.parity.passed and report.parity.agreement == 1.0
    assert {"model.onnx", "model.onnx.data", "model.plan"} <= set(report.artifact.files)
    assert (tmp_path / "made" / "model.plan").exists()
    assert {index for index, _ in trt.of("IExecutionContext.set_optimization_profile_async")} == {0, 1}
    assert len(report.parity.layers) == 3 and all(layer.flips == 0 for layer in report.parity.layers)
    assert report.target["proven"] == "engine"
    strongly = 1 << int(__import__("tensorrt").NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert {flags for (flags,) in trt.of("Builder.create_network")} == {strongly}


def test_build_makes_the_engines_of_an_artifact(trt, artifact):
    """Both on one file of weights, and Triton is given the very plans."""
    made = artifact(engines="two")
    built = build(made, {"builder_optimization_level": 5, "triton": True})
    data = json.loads((made / "mocomp.json").read_text())
    assert {"model.plan", "decode.plan", "triton/decode/1/model.plan", "triton/model/config.pbtxt"} <= set(built.files)
    assert built.parity is not None and built.parity.passed and data["parity"]["passed"]
    assert data["options"]["emulate"] is False and data["options"]["builder_optimization_level"] == 5
    assert set(built.files) <= set(data["artifact"]["files"]) and data["target"]["proven"] == "engine"
    assert {level for (level,) in trt.of("IBuilderConfig.builder_optimization_level=")} == {5}
    assert (made / "triton/decode/1/model.plan").read_bytes() == (made / "decode.plan").read_bytes()
    assert not list(made.glob("tmp*")), "nothing is left of engines that were built to prove experts alone"


OPTIONS = {
    "strip_plan": ({"strip_plan": True}, {"STRIP_PLAN", "REFIT_IDENTICAL"}),
    "refit": ({"refit": True}, {"REFIT"}),
    "both": ({"refit": True, "strip_plan": True}, {"REFIT", "STRIP_PLAN"}),
    "version": ({"version_compatible": True}, {"VERSION_COMPATIBLE"}),
    "streaming": ({"weight_streaming": True}, {"WEIGHT_STREAMING"}),
    "tf32": ({"tf32": True}, {"TF32"}),
    "none": ({}, set()),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_set_the_flags_of_their_names(trt, artifact, name):
    options, expected = OPTIONS[name]
    made = artifact()
    chosen = Engine(**options)
    ran = outputs(made, chosen)
    assert flags(trt) == expected
    assert ("TF32" in {flag.name for (flag,) in trt.of("IBuilderConfig.clear_flag")}) == ("tf32" not in options)
    assert np.isfinite(ran["logits"]).all()


def outputs(directory, chosen: Engine) -> dict[str, np.ndarray]:
    """What an engine of these options gives for three tokens."""
    from mocomp.lowering.engine_files import build_all

    parts = parts_in(directory)
    build_all(directory, parts, chosen)
    return EngineRunner(directory, parts, chosen, []).run(call(load(directory), 3))


def call(model, sequence: int, past: int = 0) -> dict[str, np.ndarray]:
    """Inputs of one sequence."""
    sizes = {"batch": 1, "sequence": sequence, "past": past, "total": past + sequence}
    made = {}
    for value in model.graph.inputs:
        shape = [dim if isinstance(dim, int) else sizes[dim.value] for dim in value.shape]
        made[value.name] = np.ones(shape, np.int64 if value.dtype.name == "INT64" else np.float32)
    return made


def test_sizes_levels_and_caches_reach_the_builder(trt, artifact, tmp_path):
    chosen = Engine(
        workspace="2GB",
        hardware_compatibility_level="ampere_plus",
        timing_cache=str(tmp_path / "cache"),
        profiles=("a:sequence=4",),
    )
    made = artifact()
    outputs(made, chosen)
    assert [size for _, size in trt.of("IBuilderConfig.set_memory_pool_limit")] == [2 * 10**9]
    assert [level.name for (level,) in trt.of("IBuilderConfig.hardware_compatibility_level=")] == ["AMPERE_PLUS"]
    assert (tmp_path / "cache").read_bytes() == b"timed;"
    outputs(made, chosen)
    assert b"timed;" in [data for (data,) in trt.of("IBuilderConfig.create_timing_cache")]


def test_a_stripped_plan_gets_its_weights_from_the_graph(trt, artifact, monkeypatch):
    made = artifact()
    outputs(made, Engine(strip_plan=True))
    assert trt.of("OnnxParserRefitter.refit_from_file") == [(str(made / "model.onnx"),)]
    assert trt.of("Refitter.refit_cuda_engine") == [()]
    monkeypatch.setattr(engine_session, "_refit", lambda loaded, graph: None)
    with pytest.raises(Unsupported, match="execute_async_v3"):
        outputs(made, Engine(strip_plan=True))


def test_streamed_weights_have_the_automatic_budget(trt, artifact):
    outputs(artifact(), Engine(weight_streaming=True))
    assert trt.of("ICudaEngine.weight_streaming_budget_v2=") == [(1 << 19,)]


def test_the_same_numbers_as_in_onnx_runtime(trt, artifact):
    from mocomp.targets.tensorrt import Emulated

    made = artifact()
    given = call(load(made), 3)
    expected, got = Emulated(made, []).run(given), outputs(made, Engine())
    assert {name for name in got if "/" not in name} == set(expected)
    for name, array in expected.items():
        np.testing.assert_allclose(got[name], array, atol=1e-5)


def test_an_engine_shows_which_experts_were_chosen_and_no_more(trt, artifact):
    from mocomp.lowering.engine_files import build_all

    made = artifact()
    parts = parts_in(made)
    build_all(made, parts, Engine())
    names = watched(load(made))
    assert len(names) == 6
    assert set(names) <= set(EngineRunner(made, parts, Engine(), names).run(call(load(made), 3)))
    with pytest.raises(Unsupported, match="does not show"):
        EngineRunner(made, parts, Engine(), ["model.layers.0.mlp.experts/y"])


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_what_the_parser_refuses_is_an_error_with_its_name(trt, artifact):
    import onnx

    made = artifact()
    before = sorted(path.name for path in made.iterdir())
    model = onnx.load(made / "model.onnx", load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "Attention").op_type = "LinearAttention"
    onnx.save(model, made / "model.onnx")
    with pytest.raises(Unsupported, match="TensorRT does not take it"):
        engine_files.build_all(made, parts_in(made), Engine())
    with pytest.raises(Unsupported, match="no importer is known"):  # told before TensorRT is asked
        build(made, {})
    assert sorted(path.name for path in made.iterdir()) == before, "DIR is as it was"


def test_numbers_that_are_wrong_leave_the_directory_as_it_was(trt, artifact, monkeypatch):
    made = artifact()
    before = (made / "mocomp.json").read_text()
    monkeypatch.setattr(engine_session, "_array", lambda value, own=engine_session._array: own(value) * 2)
    with pytest.raises(ParityFailed):
        build(made, {})
    assert (made / "mocomp.json").read_text() == before and not (made / "model.plan").exists()


def test_without_tensorrt_the_message_says_what_to_do(artifact):
    made = artifact()
    with pytest.raises(MissingDependency, match=r"mocomp\[tensorrt\].*--emulate"):
        build(made, {})
    with pytest.raises(MissingDependency, match="--emulate"):
        convert(str(DIGITS), made.parent / "other", ConvertOptions(target="tensorrt"))


def test_build_refuses_what_it_cannot_change(trt, artifact, converted):
    made = artifact()
    with pytest.raises(Usage, match="engines"):
        build(made, {"engines": "two"})
    with pytest.raises(Usage, match="no dimension 'length'"):
        build(made, {"profiles": ("a:length=3",)})
    with pytest.raises(BadInput, match="--target tensorrt"):
        build(converted("mixtral").directory, {})


def test_profiles_can_be_changed_when_it_is_built(trt, artifact):
    made = artifact()
    build(made, {"profiles": ("short:batch=1..2,sequence=1..4..8,past=0..8",)})
    assert [profile.text for profile in parts_in(made)[0].profiles] == ["short:batch=1..2..2,sequence=1..4..8,past=0..8..8"]
    assert Deployment.of(json.loads((made / "mocomp.json").read_text())["options"]).profiles


def test_no_file_that_a_report_names_is_written(trt, artifact, tmp_path):
    """An artifact may be of anybody; the file that the user names is written."""
    made, theirs, own = artifact(), tmp_path / "theirs", tmp_path / "own"
    data = json.loads((made / "mocomp.json").read_text())
    data["options"]["timing_cache"], data["source"] = str(theirs), "/nowhere"
    (made / "mocomp.json").write_text(json.dumps(data))
    build(made, {})
    assert not theirs.exists()
    build(made, {"timing_cache": str(own)})
    assert own.exists() and not theirs.exists()


def test_experts_alone_are_timed_in_no_file(trt, artifact, tmp_path):
    own = tmp_path / "own"
    opened = named_target("tensorrt", Deployment(timing_cache=str(own)))
    made = artifact()
    opened.open_mixture(made, artifact_from(json.loads((made / "mocomp.json").read_text())).mixtures[0])
    assert not own.exists()


def test_a_machine_without_a_source_says_that_nothing_is_proven(trt, artifact):
    made = artifact()
    data = json.loads((made / "mocomp.json").read_text())
    (made / "mocomp.json").write_text(json.dumps(data | {"source": "/nowhere"}))
    built = build(made, {})
    assert built.parity is None and "not proven" in built.notes[0]
    assert json.loads((made / "mocomp.json").read_text())["parity"] is None


# --- the recorder itself ---------------------------------------------------------------------------------------------


def test_members_that_11_4_has_not_fail(trt):
    import tensorrt

    for name in ("FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"):
        with pytest.raises(AttributeError):
            getattr(tensorrt.BuilderFlag, name)
    network = tensorrt.Builder(None).create_network(0)
    with pytest.raises(AttributeError, match=r"no INetworkDefinition\.set_output_type"):
        network.set_output_type  # noqa: B018
    with pytest.raises(AttributeError, match=r"no IBuilderConfig\.int8_calibrator"):
        tensorrt.Builder(None).create_builder_config().int8_calibrator = None


def test_a_removed_flag_in_the_target_fails_its_tests(trt, artifact, monkeypatch):
    def planted(profiles, dims, chosen):
        import tensorrt

        return tensorrt.BuilderFlag.FP16

    monkeypatch.setattr(engine, "configuration", planted)
    with pytest.raises(AttributeError, match="FP16"):
        outputs(artifact(), Engine())


@pytest.mark.parametrize("option", ["fp16", "precision_constraints", "quantization_flags"])
def test_options_of_polygraphy_that_are_gone_fail(trt, artifact, option):
    from polygraphy.backend.trt import CreateConfig, create_network
    from polygraphy.exception import PolygraphyException

    builder, network = create_network()
    value = {"fp16": True, "precision_constraints": "obey", "quantization_flags": []}[option]
    with pytest.raises((PolygraphyException, AttributeError)):
        CreateConfig(**{option: value})(builder, network)


def test_every_option_of_the_engine_is_read_somewhere():
    """No option that nothing does anything with."""
    from pathlib import Path

    sources = [Path(module.__file__) for module in (engine, engine_session)]
    target = Path(engine.__file__).parents[1] / "targets" / "tensorrt.py"
    graphs = Path(engine.__file__).parent / "tensorrt_graphs.py"
    text = "".join(path.read_text() for path in (*sources, target, graphs))
    assert [f.name for f in dataclasses.fields(Engine) if f".{f.name}" not in text] == []
