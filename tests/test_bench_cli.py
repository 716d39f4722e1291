"""mocomp bench end to end: what it writes and prints, how it is asked, and what is refused; and the latency of a conversion."""

import json
import shutil

import pytest

from mocomp.commands.bench import BenchOptions
from mocomp.errors import Usage
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report.bench import print_bench
from mocomp.verify.latency import ALONE, measure

QUICK = ("--rounds", 2, "--seconds", 0.005, "--threads", 1)
POINT = {
    "subject",
    "workload",
    "batch",
    "sequence",
    "past",
    "mix",
    "measures",
    "ms",
    "tokens_per_s",
    "bytes",
    "flop",
    "bound_ms",
    "of_bound",
}


@pytest.fixture(scope="module")
def artifact(converted, tmp_path_factory):
    """An artifact that results may be written beside."""
    return shutil.copytree(converted("qwen3_moe").directory, tmp_path_factory.mktemp("bench") / "artifact")


def test_an_artifact_is_timed_beside_torch(command, artifact, tmp_path):
    shape = ("--sequence", "1,16", "--past", "0,8")
    done = command("bench", artifact, *QUICK, *shape, "-o", tmp_path / "new.json", "--json")
    assert done.code == 0 and done.out.count("\n") == 1, done.err
    data = json.loads(done.out)
    assert data == json.loads((artifact / "bench.json").read_text()) == json.loads((tmp_path / "new.json").read_text())
    assert data["machine"]["threads"] == 1 and "onnxruntime" in data["machine"]["versions"]
    assert data["settings"]["rounds"] == 2 and data["settings"]["past"] == "0,8"
    assert all(data["roofline"][name] > 0 for name in ("bandwidth_gb_s", "weights_gb_s", "gflop_s"))
    subjects, points = data["subjects"], data["points"]
    assert list(subjects) == ["mocomp", "torch eager"]
    assert all(0 < s["imports_gb"] <= s["peak_gb"] and s["load_s"] > 0 for s in subjects.values())
    assert subjects["mocomp"]["peak_gb"] < subjects["torch eager"]["peak_gb"]
    expected = [(1, 0), (1, 8), (16, 0), (16, 8)]
    assert [(p["sequence"], p["past"]) for p in points if p["subject"] == "mocomp"] == expected
    assert [p["workload"] for p in points[::2]] == ["1 token", "1 token, past 8", "16 tokens", "16 tokens, past 8"]
    assert [p["measures"] for p in points[::2]] == ["first token", "time per token", "first token", ""]
    for point in points:
        ms = point["ms"]
        assert set(point) == POINT and point["mix"] is None
        assert ms["low"] <= ms["p10"] <= ms["median"] <= ms["p90"] <= ms["high"] and len(ms["rounds"]) == 2
        assert point["tokens_per_s"] == pytest.approx(1e3 * point["sequence"] / ms["median"])
        assert point["of_bound"] == pytest.approx(point["bound_ms"] / ms["median"]) and 0 < point["of_bound"] < 1
    ours, theirs = ([p for p in points if p["subject"] == name] for name in subjects)
    assert [r["ratio"] for r in data["ratios"]] == [
        a["ms"]["median"] / b["ms"]["median"] for a, b in zip(ours, theirs, strict=True)
    ]
    assert all(0 < r["ratio"] < 1 for r in data["ratios"])  # eager torch takes a call for every expert


def test_an_earlier_benchmark_is_compared_with(command, artifact, tmp_path):
    first = command("bench", artifact, *QUICK, "--sequence", 4, "--baseline", "none", "-o", tmp_path / "old.json")
    assert first.code == 0 and "reached" in first.out and "torch" not in first.out
    old = json.loads((tmp_path / "old.json").read_text())
    for name in ("median", "p10", "p90", "low", "high"):
        old["points"][0]["ms"][name] /= 100
    (tmp_path / "old.json").write_text(json.dumps(old))
    options = ("--sequence", 4, "--baseline", "none", "--against", tmp_path / "old.json")
    done = command("bench", artifact, *QUICK, *options)
    assert done.code == 0 and "slower than before: 4 tokens of mocomp" in done.out
    told = json.loads((artifact / "bench.json").read_text())["against"]
    assert told["file"] == "old.json" and [p["verdict"] for p in told["points"]] == ["slower"]


def test_a_baseline_that_is_not_there_is_a_row_with_its_reason(command, artifact, tmp_path, monkeypatch):
    moved = shutil.copytree(artifact, tmp_path / "moved")
    report = json.loads((moved / "mocomp.json").read_text())
    (moved / "mocomp.json").write_text(json.dumps(report | {"source": str(tmp_path / "gone")}))
    done = command("bench", moved, *QUICK, "--sequence", 4, "--baseline", "torch", "--baseline", "transformers")
    assert done.code == 0 and done.out.count("does not run here: the source") == 2
    data = json.loads((moved / "bench.json").read_text())
    assert {p["subject"] for p in data["points"]} == {"mocomp"} and data["ratios"] == []
    assert "error" in data["subjects"]["torch eager"] and "error" in data["subjects"]["transformers exporter"]


def test_modalities_are_mixed_where_a_model_has_groups(command, upcycled, tmp_path):
    source = upcycled("llama", groups="text=2,image=2", modality=("image=20..29",))
    convert(str(source), tmp_path / "made", ConvertOptions(parity="off"))
    done = command("bench", tmp_path / "made", *QUICK, "--sequence", 8, "--baseline", "none", "--json")
    (point,) = json.loads(done.out)["points"]
    assert point["mix"] == {"text": 0.5, "image": 0.5} and point["workload"] == "8 tokens, text 50%, image 50%"
    asked = BenchOptions(mix=("text=1", "image=0.75,text=0.25")).wanted(((),))
    assert asked.mixes == ((("text", 1.0),), (("image", 0.75), ("text", 0.25)))


WRONG = {
    "no artifact": (5, "nowhere", (), "no mocomp.json"),
    "no number": (2, "", ("--batch", "two"), "--batch 'two'"),
    "no sequence": (2, "", ("--sequence", "0"), "--sequence '0'"),
    "too many threads": (2, "", ("--threads", 4096), "--threads 4096"),
    "no groups": (2, "", ("--mix", "text=0.5,image=0.5"), "no groups of experts by modality"),
    "half a mix": (2, "", ("--mix", "text=0.5"), "--mix 'text=0.5'"),
    "too long": (2, "", ("--sequence", 99999999), "nothing to time"),
    "no rounds": (2, "", ("--rounds", 0), "0 rounds"),
    "no earlier one": (5, "", ("--against", "nowhere.json"), "no benchmark"),
    "nowhere to write": (5, "", ("-o", "nowhere/new.json"), "no such directory"),
}


@pytest.mark.parametrize(("code", "where", "arguments", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(command, converted, tmp_path, code, where, arguments, said):
    directory = tmp_path / where if where else converted("qwen3_moe").directory
    done = command("bench", directory, *arguments)
    assert (done.code, done.out) == (code, "") and said in done.err and "Traceback" not in done.err
    assert not (directory / "bench.json").exists() and list(tmp_path.iterdir()) == []


def test_options_come_from_a_file_as_well(tmp_path):
    (tmp_path / "o.yaml").write_text("batch: '1,4'\nbaseline: [none]\nseconds: 1\n")
    options = BenchOptions.read(tmp_path / "o.yaml")
    assert (options.batch, options.baseline, options.seconds) == ("1,4", ("none",), 1.0)
    with pytest.raises(Usage, match="no baseline 'jax'"):
        BenchOptions(baseline=("jax",))


def test_every_proven_conversion_is_timed(converted, checkpoint, tmp_path):
    latency = converted("qwen3_moe").report.latency
    assert list(latency) == ["original", "artifact"]
    for name in ("1 token", "128 tokens"):
        original, artifact = latency["original"][name], latency["artifact"][name]
        for ms in (original, artifact):
            assert 0 < ms["p10"] <= ms["median"] <= ms["p90"] and ms["runs"] >= ALONE
    unproven = convert(str(checkpoint("llama")), tmp_path / "made", ConvertOptions(parity="off"))
    assert unproven.latency == {}


def test_a_conversion_says_how_fast_it_is(command, checkpoint, tmp_path):
    done = command("convert", checkpoint("vit"), "-o", tmp_path / "made")
    (line,) = [line for line in done.out.splitlines() if line.startswith("latency: ")]
    latency = json.loads((tmp_path / "made" / "mocomp.json").read_text())["latency"]
    times = latency["original"]["one image"]["median"] / latency["artifact"]["one image"]["median"]
    assert line.startswith("latency: one image ") and line.endswith(f"ms ({times:.1f} times as fast as eager PyTorch)")


@pytest.mark.parametrize(("brief", "runs"), [(True, 6), (False, 50)])
def test_a_brief_timing_ends_early_and_knows_its_percentiles(monkeypatch, brief, runs):
    clock = {"now": 0.0}
    steps = iter(0.02 if i % 10 else 0.03 for i in range(10**6))
    monkeypatch.setattr("mocomp.verify.latency.time.perf_counter", lambda: clock["now"])

    monkeypatch.setattr("mocomp.verify.latency.interruptions", lambda: 0)

    def run():
        clock["now"] += next(steps)

    taken = measure(run, brief)
    assert taken.median == pytest.approx(20) and abs(taken.runs - runs) <= (0 if brief else 4)
    assert taken.p10 == pytest.approx(20) and taken.p90 <= 30


def test_a_brief_timing_goes_on_for_runs_that_nothing_disturbed(monkeypatch):
    clock, seen = {"now": 0.0}, {"asked": 0, "switches": 0, "runs": 0}

    def interruptions():
        seen["asked"] += 1
        seen["switches"] += seen["asked"] % 2 == 0 and seen["runs"] <= 10
        return seen["switches"]

    def run():
        seen["runs"] += 1
        clock["now"] += 0.01 if seen["runs"] <= 10 else 0.002

    monkeypatch.setattr("mocomp.verify.latency.time.perf_counter", lambda: clock["now"])
    monkeypatch.setattr("mocomp.verify.latency.interruptions", interruptions)
    taken = measure(run, brief=True)
    assert taken.runs == 3 and taken.p90 < 10


def test_a_benchmark_of_images_is_printed_as_one(capsys):
    at = {
        "subject": "mocomp",
        "workload": "8 images",
        "measures": "",
        "tokens_per_s": 123.4,
        "bound_ms": None,
        "of_bound": None,
    }
    ms = {"median": 64.8, "low": 60.0, "high": 70.0}
    data = {
        "machine": {"cpu": "a processor", "threads": 1, "cores": 2, "memory_gb": 3.0},
        "roofline": {"bandwidth_gb_s": 1.0, "weights_gb_s": 2.0, "gflop_s": 3.0},
        "subjects": {"mocomp": {"words": "w", "load_s": 1.0, "peak_gb": 2.0, "imports_gb": 0.5}},
        "points": [at | {"ms": ms, "bound_ms": None, "of_bound": None}],
        "ratios": [],
        "settings": {"kind": "vision", "spread": "p10 to p90"},
        "notes": [],
        "against": None,
    }
    print_bench(data)
    shown = capsys.readouterr().out
    assert "images/s" in shown and "60.0 to 70.0" in shown and "123" in shown and "1.50" in shown
