"""What the CUDA provider is driven by, as far as a machine without one can tell: on the CPU, and on sessions made up."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime
import pytest
from onnx import parser

from mocomp.deployment import Deployment
from mocomp.errors import BadInput, Usage
from mocomp.lowering.cuda_session import BoundSession, missing_cuda, providers, replayed
from mocomp.lowering.device_values import put, taken
from mocomp.lowering.host_copies import copies_of_run, host_copies
from mocomp.lowering.onnx_graph import to_onnx
from mocomp.targets import onnxruntime as target
from mocomp.targets.onnxruntime import OnnxRuntime

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "checkpoint"
TYPES = {"float": 1, "float16": 10, "bfloat16": 16}


def opened(kind: str) -> Any:
    """y = the sum of x and x, in a type, and z [N] of it in float32."""
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
        g ({kind}[N, 3] x, int64[N] i) => ({kind}[N, 3] y, int64[N] j, float[N] z)
        {{ f = Cast <to = 1> (x)  d = Add (f, f)  y = Cast <to = {TYPES[kind]}> (d)  j = Add (i, i)
           one = Constant <value = int64[1] {{1}}> ()  z = ReduceSum <keepdims = 0> (d, one) }}"""
    model = parser.parse_model(text).SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


def inputs(rows: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(3 * rows, dtype=np.float32).reshape(rows, 3) / 4, "i": np.arange(rows)}


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_bound_inputs_and_outputs_are_the_arrays(kind, rows):
    given = inputs(rows)
    found = BoundSession(opened(kind), "cpu").run(given)
    np.testing.assert_array_equal(found["y"], 2 * given["x"])
    np.testing.assert_array_equal(found["j"], 2 * given["i"])
    np.testing.assert_array_equal(found["z"], 2 * given["x"].sum(-1))
    assert found["y"].dtype == found["z"].dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.int64, np.bool_])
def test_a_value_on_a_device_is_a_copy(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    value = put(array, "cpu")
    kept = array.copy()
    array[:] = 0
    np.testing.assert_array_equal(taken(value), kept.astype(taken(value).dtype))


def test_outputs_stay_where_they_are_from_run_to_run():
    session = BoundSession(opened("float16"), "cpu")
    seen: list[Any] = []
    given = session.session.run_with_iobinding
    session.session.run_with_iobinding = lambda binding: (
        given(binding),
        seen.append([v.data_ptr() for v in binding.get_outputs()]),
    )
    again = session.staying(inputs(4))
    again()
    again()
    assert seen[0] == seen[1] == seen[2]


class Refusing:
    """A session that cannot be recorded, as one with a node on the CPU."""

    def __init__(self, graphs: bool, session: Any):
        self.graphs, self.session, self.ran = graphs, session, 0

    def staying(self, given: Any) -> Any:
        if self.graphs:
            raise RuntimeError("This session cannot use the graph capture feature\nas requested by the user")
        return self.session.staying(given)


def test_without_a_cuda_graph_it_runs_all_the_same_and_says_why():
    session = BoundSession(opened("float"), "cpu")
    run, how = replayed(lambda graphs: Refusing(graphs, session), inputs(2))  # type: ignore[arg-type,return-value]
    run()
    assert how == "no CUDA graph: This session cannot use the graph capture feature"
    assert replayed(lambda graphs: session, inputs(2))[1] == "CUDA graph"


def test_providers_are_those_of_the_device():
    assert providers("cpu") == ["CPUExecutionProvider"]
    assert providers("cuda")[0] == ("CUDAExecutionProvider", {"use_tf32": "0"})
    assert providers("cuda", graphs=True)[0] == ("CUDAExecutionProvider", {"use_tf32": "0", "enable_cuda_graph": "1"})
    assert providers("cuda", tf32=True)[0] == ("CUDAExecutionProvider", {"use_tf32": "1"})


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_is_rounded_to_tf32_only_where_that_is_asked_for(monkeypatch, tmp_path, tf32):
    """What ONNX Runtime is told when a target for CUDA opens an artifact."""
    told: list[Any] = []

    def opening(source: Any, options: Any, providers: Any) -> Any:
        told.extend(providers)
        return SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"], get_inputs=list, get_outputs=list)

    monkeypatch.setattr(onnxruntime, "InferenceSession", opening)
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    (tmp_path / "model.onnx").write_bytes(
        parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 23]> g (float x) => (float y) { y = Neg (x) }'
        ).SerializeToString()
    )
    OnnxRuntime(Deployment(device="cuda", tf32=tf32)).open(tmp_path)
    assert told[0] == ("CUDAExecutionProvider", {"use_tf32": str(int(tf32))})


def driver(count: int, status: int = 0) -> Any:
    def counted(place: Any) -> int:
        ctypes.cast(place, ctypes.POINTER(ctypes.c_int))[0] = count
        return 0

    return SimpleNamespace(cuInit=lambda flags: status, cuDeviceGetCount=counted)


def absent(name: str) -> Any:
    raise OSError(name)


@pytest.mark.parametrize(
    ("offered", "load", "words"),
    [
        (["CPUExecutionProvider"], absent, "no CUDA provider"),
        (["CUDAExecutionProvider"], absent, "no CUDA device"),
        (["CUDAExecutionProvider"], lambda name: driver(0), "no CUDA device"),
        (["CUDAExecutionProvider"], lambda name: driver(1, status=100), "no CUDA device"),
        (["CUDAExecutionProvider"], lambda name: driver(1), None),
    ],
)
def test_what_is_missing_is_said_with_what_helps(offered, load, words):
    runtime = SimpleNamespace(get_available_providers=lambda: offered)
    reason = missing_cuda(runtime, load)
    assert (reason is None) if words is None else (reason is not None and words in reason and "--emulate" in reason)


def test_half_precision_is_of_cuda():
    with pytest.raises(Usage, match="--device cuda"):
        OnnxRuntime(Deployment(dtype="float16"))


def event(name: str, operator: str, provider: str, ts: int) -> dict[str, Any]:
    said = {"op_name": operator, "provider": f"{provider}ExecutionProvider"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": 1, "args": said}


def profile(copies: bool) -> list[dict[str, Any]]:
    """Two runs: the first copies weights, the second is what counts; with `copies` a Range runs on the CPU in it."""
    first = [event("Memcpy_token_9", "MemcpyToHost", "CUDA", 11), event("Range_0", "Range", "CPU", 12)]
    second = [event("MatMul_1", "MatMul", "CUDA", 51), event("Shape_0", "Shape", "CPU", 52)]
    planted = [event("Memcpy_1", "MemcpyToHost", "CUDA", 53), event("Range_0", "Range", "CPU", 54)]
    planted += [event("Memcpy_2", "MemcpyFromHost", "CUDA", 55)]
    runs = [{"cat": "Session", "name": "model_run", "ts": ts, "dur": 20, "args": {}} for ts in (10, 50)]
    return [*runs, *first, *second, *(planted if copies else [])]


def test_copies_of_a_profile_are_told_by_name(tmp_path):
    (tmp_path / "profile.json").write_text(json.dumps(profile(copies=True)))
    found = host_copies(tmp_path / "profile.json")
    assert found.copies == ("Memcpy_1", "Memcpy_2")
    assert found.on_cpu == {"Range": 1, "Shape": 1}
    assert str(found) == "2 copies between GPU and CPU inside a run; on the CPU: 1 Range, 1 Shape"


def test_sizes_that_the_cpu_computes_are_no_copies(tmp_path):
    (tmp_path / "profile.json").write_text(json.dumps(profile(copies=False)))
    assert host_copies(tmp_path / "profile.json").copies == ()


def test_the_profile_of_a_real_session_is_read(tmp_path):
    text = '<ir_version: 10, opset_import: ["" : 23]> g (float[N] x) => (float[N] y) { a = Cos (x)  y = Sin (a) }'
    (tmp_path / "model.onnx").write_bytes(parser.parse_model(text).SerializeToString())
    assert copies_of_run(tmp_path, {"x": np.zeros(3, np.float32)}, "cpu").copies == ()


@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_what_is_no_profile_is_refused(tmp_path, text):
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(BadInput, match="no profile"):
        host_copies(tmp_path / "profile.json")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_converted_for_cuda_and_proven_without_one(command, tmp_path, monkeypatch, dtype):
    made = tmp_path / "made"
    exported: list[int] = []
    monkeypatch.setattr(target, "to_onnx", lambda *given: exported.append(1) or to_onnx(*given))
    arguments = ["--device", "cuda", "--dtype", dtype, "--emulate", "--json"]
    done = command("convert", str(DIGITS), "-o", str(made), *arguments)
    assert done.code == 0, done.err
    assert len(exported) == 1, "the gaps are told by the graph that is written"
    report = json.loads((made / "mocomp.json").read_text())
    assert "emulated: proven on the CPU in float32, unproven on the GPU" in report["notes"]
    assert report["parity"]["failures"] == []
    assert report["latency"] in ({}, None), "the time of an emulation is nobody's"


def test_without_a_gpu_and_without_emulating_it_is_refused(command, tmp_path):
    done = command("convert", str(DIGITS), "-o", str(tmp_path / "made"), "--device", "cuda", "--dtype", "float16")
    assert done.code == 4
    assert "--emulate" in done.err
    assert not (tmp_path / "made").exists()
