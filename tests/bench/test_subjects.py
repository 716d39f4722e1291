"""The subjects compute the same thing on the same file of inputs, and processes that fail say why."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from mocomp.bench import processes, subjects
from mocomp.bench.drawn_inputs import inputs_of
from mocomp.bench.exporter import Exporter
from mocomp.bench.machine import cpus, machine, peak_gb
from mocomp.bench.onnx_subject import OnnxSubject
from mocomp.bench.points import Point
from mocomp.bench.prepared import prepare
from mocomp.bench.processes import Worker
from mocomp.bench.target_subject import TargetSubject
from mocomp.bench.torch_subject import TorchSubject
from mocomp.errors import Unsupported
from mocomp.opening import open_target
from mocomp.verify.parity import inner_values

POINTS = (Point(2, 3, 9), Point(1, 12))


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def prepared(converted, tmp_path_factory):
    """A mixture's artifact, with its points prepared."""
    made = converted("qwen3_moe")
    mixtures, interface = made.report.artifact.mixtures, made.report.interface
    runner = open_target("onnxruntime").open(made.directory, inner_values(mixtures))
    place = tmp_path_factory.mktemp("inputs")
    return made, [prepare(runner, mixtures, interface, p, inputs_of(interface, p, 3), place) for p in POINTS]


def told(made, **more):
    source = {"source": str(made.source), "trust_remote_code": False, "task": "auto"}
    return source | {"directory": str(made.directory), "target": "onnxruntime", "threads": 1, "compiled": False} | more


def logits_of_torch(made, file):
    make = TorchSubject(told(made)).ready(str(file))
    first, second = make()().logits.numpy(), make()().logits.numpy()
    np.testing.assert_array_equal(first, second)  # a run leaves the cache as it was
    return first


def test_the_artifact_and_torch_compute_the_same(prepared):
    made, points = prepared
    for at in points:
        expected = logits_of_torch(made, at.file)
        assert expected.shape[:2] == (at.point.batch, at.point.sequence)
        np.testing.assert_allclose(OnnxSubject(told(made)).ready(str(at.file))()()[0], expected, atol=1e-4)
        np.testing.assert_allclose(TargetSubject(told(made)).ready(str(at.file))()()["logits"], expected, atol=1e-4)


def test_the_past_that_is_fed_is_that_of_the_same_tokens(prepared):
    """The whole sequence in one call ends as the last piece of it does after its past."""
    made, (at, _) = prepared
    interface, point = made.report.interface, at.point
    given = inputs_of(interface, point, 3)
    model = TorchSubject(told(made)).model
    with torch.no_grad():
        whole = model(input_ids=torch.from_numpy(given["input_ids"])).logits[:, point.past :]
    np.testing.assert_allclose(logits_of_torch(made, at.file), whole.numpy(), atol=1e-4)


def test_experts_that_are_hit_are_those_of_the_original(prepared):
    made, points = prepared
    model, seen = TorchSubject(told(made)).model, {}
    for name, module in model.named_modules():
        if name.endswith("mlp.experts"):
            module.register_forward_hook(
                lambda _, args, kwargs, out, n=name: seen.update({n: [*args, *kwargs.values()][1]}), with_kwargs=True
            )
    at = points[1]
    with np.load(at.file) as given, torch.no_grad():
        model(input_ids=torch.from_numpy(given["input_ids"]))
    assert at.distinct == {name: len(ids.unique()) for name, ids in seen.items()} and seen


def test_the_exporter_of_transformers_computes_the_same(prepared, tmp_path):
    made, points = prepared
    Exporter(told(made, directory=str(tmp_path)))
    exported = OnnxSubject(told(made, directory=str(tmp_path)))
    names = [value.name for value in exported.session.get_outputs()]
    for at in points:
        outputs = exported.ready(str(at.file))()()
        np.testing.assert_allclose(outputs[names.index("logits")], logits_of_torch(made, at.file), atol=1e-4)


def test_the_exporter_does_not_know_mixtures_of_ours(upcycled, tmp_path):
    source = {"source": str(upcycled("llama")), "trust_remote_code": False, "task": "auto", "threads": 1}
    with pytest.raises(Unsupported, match="mixtures are of mocomp"):
        Exporter(source | {"directory": str(tmp_path)})


def test_mixtures_of_ours_run_in_torch(upcycled, tmp_path):
    given = np.arange(6)[None]
    np.savez(tmp_path / "x.npz", input_ids=given, attention_mask=np.ones_like(given))
    source = {"source": str(upcycled("llama")), "trust_remote_code": False, "task": "auto", "threads": 1, "compiled": False}
    subject = TorchSubject(source)
    assert subject.ready(str(tmp_path / "x.npz"))()().logits.shape[:2] == (1, 6)


def test_torch_compile_without_a_compiler_is_a_reason(converted, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    made = converted("qwen3_moe")
    with pytest.raises(Unsupported, match=r"no C\+\+ compiler"):
        subjects.baseline("compile", str(made.source), made.report.options, tmp_path, [0])


def test_a_source_that_is_gone_is_a_reason(converted, tmp_path):
    with pytest.raises(Unsupported, match="not there any more"):
        subjects.baseline("torch", str(tmp_path / "none"), converted("qwen3_moe").report.options, tmp_path, [0])


def test_a_process_runs_where_it_is_told_and_times(prepared):
    made, points = prepared
    cpu = cpus()[-1:]
    worker = Worker(told(made, kind="onnx", name="mocomp"), cpu)
    if hasattr(os, "sched_getaffinity"):
        assert os.sched_getaffinity(worker._process.pid) == set(cpu)
    answer = worker.ask(file=str(points[0].file), seconds=0.01, fewest=4)
    worker.close()
    assert worker.hello["words"].startswith("ONNX Runtime") and worker.hello["load_s"] > 0
    assert len(answer["ms"]) >= 4 and all(ms > 0 for ms in answer["ms"])
    assert worker.hello["imports_gb"] < answer["peak_gb"] < 0.2  # not even torch is there, and nothing of this process counts
    assert peak_gb() > 0.2


def test_a_process_that_cannot_load_says_why(tmp_path):
    with pytest.raises(Unsupported, match=r"oops: .*model.onnx"):
        Worker({"name": "oops", "kind": "onnx", "directory": str(tmp_path)}, cpus()[:1])


@pytest.mark.parametrize(("script", "said"), [("raise SystemExit('worn out')", "saying worn out"), ("", "ended with 0")])
def test_a_process_that_ends_says_how(monkeypatch, tmp_path, script, said):
    (tmp_path / "stub").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{script}"\n')
    (tmp_path / "stub").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "stub"))
    with pytest.raises(Unsupported, match=said):
        Worker({"kind": "onnx"}, [0])


def test_a_process_that_does_not_answer_is_ended(monkeypatch, tmp_path):
    (tmp_path / "stub").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "stub").chmod(0o755)
    monkeypatch.setattr("sys.executable", str(tmp_path / "stub"))
    monkeypatch.setattr(processes, "PATIENCE_S", 0.1)
    monkeypatch.setattr(processes, "FAREWELL_S", 0.1)
    with pytest.raises(Unsupported, match=r"no answer in 0\.1 s"):
        Worker({"kind": "onnx"}, [0])


def test_the_machine_is_described_and_not_named():
    described = machine(2, {"python": "3"})
    assert described["cores"] == os.cpu_count() and described["threads"] == 2 and described["memory_gb"] > 0
    assert os.uname().nodename not in json.dumps(described)
