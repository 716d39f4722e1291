"""benchmarks/gpu.py in small, on the CPU: the code that measures on a GPU, with its checks."""

# pyright: reportMissingImports=false, reportAttributeAccessIssue=false
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu  # noqa: E402
from gpu_layers import LAYERS, build, draw, tiny  # noqa: E402
from gpu_limits import Limits, work_of  # noqa: E402
from gpu_onnx import Compiled  # noqa: E402
from gpu_points import DeviceLost, Truth, spread, survive, within  # noqa: E402
from gpu_results import table  # noqa: E402
from gpu_subjects import SCOPES, Case, Torch, Unavailable  # noqa: E402

ALONE = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
NOT_THERE = ("click", "rich", "psutil", "scipy", "jinja2", "onnx_ir", "onnxscript")
"""What a machine that was lent for minutes may lack."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """What `gpu.py --device cpu --tiny` writes."""
    output = tmp_path_factory.mktemp("gpu") / "results.json"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--tiny", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, env=ALONE, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(output.read_text()) | {"stdout": done.stdout}


def test_every_subject_is_present_or_has_a_reason(whole):
    names = {subject.name: subject for subject in gpu.all_subjects("cpu")}
    assert len(names) >= 15 and set(whole["layers"]) == {"qwen3", "moma"}
    for layer in whole["layers"].values():
        assert {(point["scope"], point["tokens"]) for point in layer["points"]} == {(s, t) for s in SCOPES for t in gpu.FEW}
        assert all(layer["reasons"].values())
        for point in layer["points"]:
            expected = {n for n, subject in names.items() if point["scope"] in subject.scopes} - set(layer["reasons"])
            assert set(point["rows"]) == expected
            assert {"torch eager float32", "mocomp onnxruntime float32", "mocomp onnxruntime int4"} <= expected


def test_what_needs_a_gpu_says_so(whole):
    reasons = whole["layers"]["qwen3"]["reasons"]
    for name in ("mocomp onnxruntime float16", "mocomp onnxruntime bfloat16", "mocomp tensorrt float16"):
        assert reasons[name] == "needs --device cuda"


def rows_of(data: dict) -> list[tuple[str, dict]]:
    points = [point for layer in data["layers"].values() for point in layer["points"]]
    return [(name, row) for point in points for name, row in point["rows"].items()]


def test_the_numbers_agree_and_are_timed(whole):
    for name, row in rows_of(whole):
        assert "reason" not in row, (name, row)
        assert row["runs"] == 20 and row["spread"] >= 0
        if name.endswith("float32"):
            assert row["error"] < 1e-5


def test_the_roofline_is_below_every_time(whole):
    assert whole["limits"]["bandwidth_gb_s"] > 0 and all(rate > 0 for rate in whole["limits"]["gflop_s"].values())
    for name, row in rows_of(whole):
        assert 0 < row["bound_ms"] < row["ms"], name
        assert row["ratio_to_bound"] == pytest.approx(row["ms"] / row["bound_ms"])


def test_ratios_are_to_the_fastest_of_torch(whole):
    for layer in whole["layers"].values():
        for point in layer["points"]:
            of_torch = [row["ms"] for name, row in point["rows"].items() if name.startswith("torch ")]
            for row in point["rows"].values():
                assert row["ratio_to_fastest_torch"] == pytest.approx(row["ms"] / min(of_torch))


def test_the_table_is_all_that_is_on_stdout(whole):
    stdout = whole.pop("stdout")
    assert stdout.strip() == table(whole).strip() and "mocomp onnxruntime float32" in stdout


class Wrong(Torch):
    """An implementation that takes one expert for another."""

    def prepare(self, case):
        super().prepare(case)
        experts = self.run.block.experts
        self.run.block.experts.down_proj = torch.nn.Parameter(experts.down_proj.roll(1, 0), requires_grad=False)


class Failing(Torch):
    """One that is ready and then does not run."""

    def call(self, scope, inputs):
        raise Unavailable("not today")


class Absent(Torch):
    def prepare(self, case):
        raise RuntimeError("no such library\nand more")


def small(tmp_path, subjects, *more) -> dict:
    output = tmp_path / "results.json"
    arguments = ["--device", "cpu", "--tiny", "--layers", "qwen3", "--tokens", "5", "--output", str(output), *more]
    assert gpu.main(arguments, lambda device: subjects) == 0
    return json.loads(output.read_text())["layers"]["qwen3"]


def named(subject, name):
    subject.name = name
    return subject


def test_a_wrong_subject_is_reported_and_not_timed(tmp_path):
    subjects = [
        Torch("eager", "float32"),
        named(Wrong("eager", "float32"), "wrong"),
        named(Failing("eager", "float32"), "failing"),
    ]
    layer = small(tmp_path, [*subjects, named(Absent("eager", "float32"), "absent")])
    assert layer["reasons"] == {"absent": "RuntimeError: no such library"}
    for point in layer["points"]:
        assert "ms" in point["rows"]["torch eager float32"]
        assert point["rows"]["wrong"]["reason"].startswith("wrong numbers") and "ms" not in point["rows"]["wrong"]
        assert point["rows"]["wrong"]["error"] > 0.1
        assert point["rows"]["failing"] == {"reason": "not today"}


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    """Points that are there are not measured again, unless asked for by subject, which adds to them."""
    first = small(tmp_path, [Torch("eager", "float32")])
    again = small(tmp_path, [Torch("eager", "float32")])
    assert again == first
    more = small(tmp_path, [Torch("batched_mm", "float32")], "--subjects", "torch batched")
    assert [set(point["rows"]) for point in more["points"]] == [{"torch eager float32", "torch batched_mm float32"}] * 2


def test_a_subject_that_a_process_ended_with_is_excused(tmp_path):
    layer = small(tmp_path, [Torch("eager", "float32")])
    path = tmp_path / "results.json"
    data = json.loads(path.read_text())
    data["trying"], data["layers"]["qwen3"]["points"] = ["qwen3", "torch eager float32"], layer["points"][:1]
    path.write_text(json.dumps(data))
    layer = small(tmp_path, [Torch("eager", "float32"), Torch("batched_mm", "float32")])
    assert layer["reasons"] == {"torch eager float32": "the process ended with it"}
    assert set(layer["points"][-1]["rows"]) == {"torch batched_mm float32"}


def test_a_lost_device_ends_the_run(tmp_path, monkeypatch):
    """The run ends with a code of its own, and the next one goes on without the subject."""
    import gpu_points

    def lost(subject, device, error):
        raise DeviceLost(f"{subject.name}: CUDA error")

    monkeypatch.setattr(gpu_points, "survive", lost)
    subjects = [named(Absent("eager", "float32"), "absent")]
    output = tmp_path / "results.json"
    arguments = ["--device", "cpu", "--tiny", "--layers", "qwen3", "--tokens", "5", "--output", str(output)]
    assert gpu.main(arguments, lambda device: subjects) == gpu.LOST
    reasons = json.loads(output.read_text())["layers"]["qwen3"]["reasons"]
    assert reasons == {"absent": "CUDA error; the device was lost with it"}
    assert gpu.main(arguments, lambda device: [*subjects, Torch("eager", "float32")]) == 0


def test_survive_tells_a_lost_device(monkeypatch):
    import gpu_points

    survive(Torch("eager", "float32"), "cpu", RuntimeError("a failure of the subject alone"))

    def gone(device):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(gpu_points, "synchronise", gone)
    with pytest.raises(DeviceLost, match="torch eager float32: RuntimeError: first"):
        survive(Torch("eager", "float32"), "cuda", RuntimeError("first"))


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    return Case("qwen3", build(tiny(LAYERS["qwen3"]), "cpu"), "cpu", True, tmp_path_factory.mktemp("work"))


@pytest.mark.parametrize(("dtype", "numbers"), [("float16", ""), ("float16", "int4")])
def test_what_runs_on_a_gpu_has_the_right_numbers(case, dtype, numbers):
    """The very files for CUDA, with their 16-bit inputs, on the CPU, which computes them between casts."""
    subject = Compiled(dtype, numbers)
    subject.prepare(case)
    exact = case.model("float32")
    inputs = draw(exact, 5, "cpu")
    for scope in SCOPES:
        truth = Truth.of(exact, inputs, scope)
        worst, median = truth.errors(subject.call(scope, inputs)())
        assert max(worst, median) < subject.tolerance


def test_bits_count_the_scales():
    assert Compiled("float16").bits == 16 and Compiled("float32", device="cpu").bits == 32
    assert Compiled("float16", "int4").bits == 4 + 16 / 128


def test_work_by_hand():
    """The Qwen3 layer at one token: 8 experts of 3 matrices of 2048 x 768 and the router, in 16 bits."""
    layout = LAYERS["qwen3"]
    work = work_of(layout, "mixture", 1, experts_hit=8, bits=16)
    weights, router = 8 * 3 * 2048 * 768, 128 * 2048
    assert work.bytes == 2 * (weights + router) and work.flop == 2 * (weights + router)
    more = work_of(layout, "model", 1, experts_hit=8, bits=16)
    attention, head = 2048 * (2 * 32 * 128 + 2 * 4 * 128), 1024 * 2048
    assert more.bytes == work.bytes + 2 * (attention + head + 2048)
    limits = Limits(1000.0, {"float16": 1e6})
    assert limits.bound_ms(work, "float16") == pytest.approx(1e3 * work.bytes / 1e12)


def test_the_tokens_of_a_modality_reach_its_experts_alone():
    layer = build(tiny(LAYERS["moma"]), "cpu")
    ids = torch.tensor([[3, 900, 5, 1000]])
    seen = []
    layer.block.gate.register_forward_hook(lambda _, __, output: seen.append(output[2]))
    layer(ids)
    assert [int(i) // 4 for i in seen[0][:, 0]] == [0, 1, 0, 1]


def test_errors_of_tokens_whose_choice_rounding_changes_do_not_count_alone(case):
    """A quarter of the tokens has a clear choice; the others count by their median."""
    truth = Truth(torch.ones(8, 4), torch.arange(8.0), 8)
    flipped = torch.ones(8, 4)
    flipped[:2] = 2
    assert truth.errors(flipped) == (0.0, 0.0)
    flipped[7] = 2
    assert truth.errors(flipped)[0] == 1.0
    assert truth.errors(torch.full((8, 4), torch.nan)) == (torch.inf, torch.inf)


def test_a_subject_that_takes_too_long_is_given_up():
    with pytest.raises(Unavailable, match="more than 1 s"), within(1):
        time.sleep(5)
    with within(1):
        pass
    time.sleep(1.1)  # and the clock was stopped


def test_without_a_gpu_it_says_so(tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert gpu.main(["--output", str(tmp_path / "results.json")]) == 2
    assert "no CUDA device" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_spread_is_of_the_middle_half():
    assert spread([1.0] * 10) == 0 and spread([float(i) for i in range(1, 12)]) == pytest.approx(1.0)


def test_torch_and_results_need_nothing_else(tmp_path):
    """Torch's subjects run on a bare machine, and mocomp's say what they lack."""
    hidden = (
        f"import sys; sys.modules.update(dict.fromkeys({NOT_THERE})); sys.path.insert(0, {str(BENCHMARKS)!r}); import gpu; "
    )
    chosen = ["--subjects", "torch eager float32,mocomp onnxruntime float32", "--tokens", "2"]
    output = tmp_path / "results.json"
    arguments = ["--device", "cpu", "--tiny", "--layers", "qwen3", *chosen, "--output", str(output)]
    done = subprocess.run([sys.executable, "-c", f"{hidden}sys.exit(gpu.main({arguments!r}))"], env=ALONE, check=False)
    assert done.returncode == 0
    layer = json.loads(output.read_text())["layers"]["qwen3"]
    assert all("ms" in point["rows"]["torch eager float32"] for point in layer["points"])
    lacking = layer["reasons"]["mocomp onnxruntime float32"]
    assert lacking.startswith("mocomp needs rich, onnx_ir, onnxscript, scipy, jinja2") and "--packages" in lacking


def test_batched_mm_is_not_asked_for_too_much(case):
    subject = Torch("batched_mm", "float32")
    subject.prepare(case)
    subject.case = Case("qwen3", type("Real", (), {"layout": LAYERS["qwen3"]})(), "cpu", False, case.work)
    with pytest.raises(Unavailable, match="would gather 618 GB"):
        subject.call("mixture", draw(case.model("float32"), 4096, "cpu"))
