# pyright: reportMissingImports=false
"""benchmarks/gpu_session.py: nothing that a step found is lost."""

import json
import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu_session


def test_a_session_keeps_what_it_has(tmp_path, monkeypatch):
    """A step that is cut off, one that fails and one that ends by a signal do not keep the others from being done."""

    def fake(device, tiny, out):
        write = f"import pathlib; p = pathlib.Path({str(out)!r}) / 'tries'; n = len(p.read_text()) if p.exists() else 0; "
        again = f"{write}p.write_text('x' * (n + 1)); import os, signal; n or os.kill(os.getpid(), signal.SIGKILL)"
        return [
            gpu_session.Step("slow", ("-c", "import time; time.sleep(60)"), 0.01),
            gpu_session.Step("failing", ("-c", "raise SystemExit(1)"), 1),
            gpu_session.Step("ending", ("-c", again), 1),
            gpu_session.Step("unasked", ("-c", ""), 1),
        ]

    monkeypatch.setattr(gpu_session, "steps", fake)
    assert gpu_session.main(["--out", str(tmp_path), "--steps", "slow,failing,ending"]) == 1
    ended = json.loads((tmp_path / "session.json").read_text())
    assert {name: (found["ended"], found["started"]) for name, found in ended.items()} == {
        "slow": (gpu_session.CUT_OFF, 1),
        "failing": (1, 1),
        "ending": (0, 2),
    }


def test_the_steps_of_a_session_are_commands_that_exist(tmp_path):
    for step in gpu_session.steps("cuda", True, tmp_path):
        place = step.command[1].replace(".", "/") + ".py" if step.command[0] == "-m" else step.command[0]
        assert (gpu_session.ROOT / place).exists(), step
    assert sum(step.minutes for step in gpu_session.steps("cuda", False, tmp_path)) >= 25


def test_the_environment_is_told(tmp_path):
    done = gpu_session.main(["--out", str(tmp_path), "--steps", "environment"])
    found = json.loads((tmp_path / "environment.json").read_text())
    assert done == 0 and found["libraries"]["torch"] == torch.__version__ and "stopped" not in found
    assert set(found["missing"]) == {"gpu", "tensorrt"}
