"""The command line: what it prints where, its exit codes, and what an interruption leaves."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mocomp import terminal
from mocomp.report.listing import CONTRACTS
from tests.conftest import Done


@pytest.fixture
def artifact(converted, tmp_path) -> Path:
    """An artifact that a test may damage."""
    return shutil.copytree(converted("mixtral").directory, tmp_path / "artifact")


def test_help_names_every_command(command):
    done = command("--help")
    assert done.code == 0 and all(name in done.out for name in ("convert", "parity", "inspect", "list"))


@pytest.mark.parametrize(
    "arguments", [["convert"], ["convert", "x"], ["transmogrify"], ["convert", "x", "-o", "y", "--parity", "maybe"]]
)
def test_a_command_that_cannot_be_meant_so(command, arguments):
    done = command(*arguments)
    assert done.code == 2 and "Usage: mocomp" in done.err


def test_a_conversion_prints_its_report_and_leaves_no_log(command, checkpoint, tmp_path):
    done = command("convert", checkpoint("llama"), "-o", tmp_path / "artifact", "--time-passes", "--print-after", "clean")
    assert done.code == 0 and "parity passed" in done.out and "fold_weights: " in done.out
    assert "parity: running the artifact" in done.err and "%input_ids" in done.err  # progress and the program are no report
    assert log_of(done) is None and [path.name for path in tmp_path.iterdir()] == ["artifact"]


def test_json_is_all_that_standard_output_holds(command, checkpoint, tmp_path):
    (tmp_path / "options.yaml").write_text("parity: 'off'\nseed: 3\n")
    done = command(
        "convert", checkpoint("mixtral"), "-o", tmp_path / "a", "--json", "--config", tmp_path / "options.yaml", "--seed", 4
    )
    report = json.loads(done.out)
    assert done.code == 0 and done.out.count("\n") == 1
    assert report["options"]["seed"] == 4 and report["options"]["parity"] == "off"  # the command line wins
    assert report == json.loads((tmp_path / "a" / "mocomp.json").read_text())


def test_profiles_in_a_file_are_taken(command, checkpoint, tmp_path):
    """A list that is not said on the command line is not said to be empty there."""
    (tmp_path / "options.yaml").write_text("profiles: ['a:length=4']\ntarget: tensorrt\nemulate: true\n")
    done = command("convert", checkpoint("mixtral"), "-o", tmp_path / "a", "--config", tmp_path / "options.yaml")
    assert done.code == 2 and "no dimension 'length'" in done.err


def test_a_graph_alone_needs_no_weights(command, checkpoint, tmp_path):
    (tmp_path / "source").mkdir()
    shutil.copy(checkpoint("mixtral") / "config.json", tmp_path / "source")
    done = command("convert", tmp_path / "source", "-o", tmp_path / "artifact", "--weights", "none", "--json")
    assert done.code == 0 and json.loads(done.out)["parity"] is None
    assert not list((tmp_path / "artifact").glob("*.data"))


def test_parity_again(command, artifact):
    done = command("parity", artifact, "--seed", 5, "--json")
    verdict = json.loads(done.out)
    assert done.code == 0 and verdict["passed"] and verdict["seed"] == 5 and done.out.count("\n") == 1


def test_parity_against_another_model_fails_with_its_code(command, artifact, checkpoint):
    done = command("parity", artifact, "--reference", checkpoint("mixtral", tie_word_embeddings=True))
    assert done.code == 1 and "parity failed" in done.out and "Traceback" not in done.err


def test_parity_of_a_damaged_artifact(command, artifact):
    (artifact / "model.onnx").write_bytes((artifact / "model.onnx").read_bytes()[:100])
    done = command("parity", artifact)
    assert done.code == 5 and "model.onnx is damaged" in done.err and "Convert again" in done.err


def test_parity_without_its_weights(command, artifact):
    (artifact / "model.onnx.data").unlink()
    done = command("parity", artifact)
    assert done.code == 5 and "ONNX Runtime does not load it" in done.err and "convert again" in done.err


def test_parity_failing_keeps_nothing(command, checkpoint, tmp_path, monkeypatch):
    """What numbers nobody should ship is no artifact; the report of what is wrong is on the screen."""
    from mocomp.verify.tolerance import TABLE, Tolerance

    monkeypatch.setitem(TABLE, ("onnxruntime", "float32"), Tolerance(1e-30, 1e-30, 1e-4, "for this test"))
    done = command("convert", checkpoint("llama"), "-o", tmp_path / "artifact")
    assert done.code == 1 and "parity failed" in done.err and "tolerance 1e-30" in done.err
    assert list(tmp_path.iterdir()) == []


def test_inspect(command, checkpoint):
    done = command("inspect", checkpoint("mixtral"), "--json")
    found = json.loads(done.out)
    assert done.code == 0 and found["model_type"] == "mixtral" and [row["experts"] for row in found["mixtures"]] == [8]
    assert "8" in command("inspect", checkpoint("mixtral")).out


@pytest.mark.parametrize("what", [*CONTRACTS, "models"])
def test_list(command, what):
    done = command("list", what)
    assert done.code == 0 and len(done.out.splitlines()) >= 1 and all(len(line.split()) > 1 for line in done.out.splitlines())


def log_of(done: Done) -> Path | None:
    lines = [line for line in done.err.splitlines() if line.startswith("The libraries' own messages: ")]
    return Path(lines[0].split(": ", 1)[1]) if lines else None


def test_a_failure_names_the_log_with_everything_in_it(command, tmp_path):
    done = command("convert", tmp_path / "absent", "-o", tmp_path / "artifact")
    log = log_of(done)
    assert "Traceback" not in done.err and "Traceback" in log.read_text() and "BadInput" in log.read_text()


@pytest.mark.parametrize(
    ("when", "number", "stays"), [("trace", signal.SIGINT, False), ("parity: running the original", signal.SIGTERM, True)]
)
def test_an_interruption_leaves_what_the_same_command_goes_on_with(checkpoint, tmp_path, when, number, stays):
    """Ctrl-C, or the end of a batch job, in the middle of a conversion in a process of its own."""
    output = tmp_path / "output" / "artifact"
    arguments = [sys.executable, "-m", "mocomp", "convert", checkpoint("mixtral"), "-o", output]
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(tmp_path)
    )  # fmt: skip
    seen = ""
    while when not in seen and process.poll() is None:
        seen += process.stderr.readline()
    time.sleep(0.05)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, seen + err
    assert out == "" and "Traceback" not in err
    assert f"interrupted; {'what is written stays' if stays else 'nothing was left behind'}" in err
    left = {".artifact.partial", ".artifact.journal"} if stays else set()
    assert {path.name for path in (tmp_path / "output").glob("*")} == left
    assert list((tmp_path / "temporary").glob("mocomp-*.log")) == []


def environment(directory: Path) -> dict[str, str]:
    (directory / "temporary").mkdir()
    return os.environ | {"TMPDIR": str(directory / "temporary"), "PYTHONPATH": str(Path(__file__).parents[1])}


def test_an_interruption_that_a_library_swallows_still_stops():
    """torch and ONNX Runtime call back into Python, where an exception is printed and dropped."""
    with pytest.raises(KeyboardInterrupt), terminal.interruptible():
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        terminal.stop_if_interrupted()
    with terminal.interruptible():
        terminal.stop_if_interrupted()
