"""Everything that can be learned on a machine with a GPU, in one go: what is there, facts, parity on CUDA, the benchmark.

    python benchmarks/gpu_session.py --out $OUT                              # within 25 minutes
    python benchmarks/gpu_session.py --out $OUT --steps facts,parity --minutes 9     # a part, for machines lent for minutes
    python benchmarks/gpu_session.py --out $OUT --onnxruntime FOLDER --packages FOLDER

Each step is a process with a limit, and keeps what it found in the folder as it goes, so nothing is lost when it or a later
one fails or is cut off. A step that ended by itself is started again and goes on after what it ended with. `session.json`
says how each step ended.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TRIES = 6
CUT_OFF = "cut off"


@dataclass(frozen=True)
class Step:
    """A command, whose output goes to a log of its name, and the most minutes that it may take."""

    name: str
    command: tuple[str, ...]
    minutes: float


def steps(device: str, tiny: bool, out: Path) -> list[Step]:
    """All steps, in order."""
    small = ("--tiny",) if tiny else ()
    parity = "cuda" if device == "cuda" else "emulate"
    benchmark = ("benchmarks/gpu.py", "--device", device, *small, "--work", str(out / "work"))
    layers = [
        Step(f"benchmark-{layer}", (*benchmark, "--layers", layer, "--output", str(out / "benchmark.json")), 8)
        for layer in ("qwen3", "mixtral", "moma")
    ]
    return [
        Step("environment", ("benchmarks/gpu_environment.py", str(out / "environment.json")), 2),
        Step("facts", ("-m", "tests.gpu.onnxruntime_facts", device, str(out / "facts.json")), 3),
        Step("tensorrt", ("-m", "tests.gpu.tensorrt_facts", str(out / "tensorrt.json")), 3),
        Step("parity", ("-m", "tests.gpu.cuda_parity", parity, str(out / "parity.json")), 8),
        *layers,
    ]


def run(step: Step, out: Path, until: float, environment: dict[str, str]) -> dict[str, object]:
    """How a step ended: its last exit code or CUT_OFF, its seconds, and how often it was started."""
    begin = time.monotonic()
    end = min(until, begin + 60 * step.minutes)
    code: int | str = CUT_OFF
    tries = 0
    with (out / f"{step.name}.log").open("a") as log:
        while tries < TRIES and time.monotonic() < end:
            tries += 1
            try:
                left = end - time.monotonic()
                code = subprocess.run(
                    [sys.executable, *step.command],
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=log,
                    timeout=left,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                code = CUT_OFF
            if code in (0, 1, 2, CUT_OFF):  # done, or a failure that would come again
                break
    return {"ended": code, "seconds": round(time.monotonic() - begin, 1), "started": tries}


def main(arguments: list[str]) -> int:
    """Run the steps asked for. Returns 0 when all of them ended by themselves and well."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", default="", help="beginnings of their names, with commas; all by default")
    parser.add_argument("--minutes", type=float, default=25)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--onnxruntime", type=Path)
    parser.add_argument("--packages", type=Path, action="append", default=[])
    asked = parser.parse_args(arguments)
    asked.out.mkdir(parents=True, exist_ok=True)
    folders = [folder.resolve() for folder in [asked.onnxruntime, *asked.packages] if folder]
    paths = [str(ROOT), *map(str, folders), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    until = time.monotonic() + 60 * asked.minutes
    path = asked.out / "session.json"
    ended = json.loads(path.read_text()) if path.exists() else {}
    chosen = tuple(asked.steps.split(","))
    for step in steps(asked.device, asked.tiny, asked.out.resolve()):
        if step.name.startswith(chosen):
            ended[step.name] = run(step, asked.out, until, environment)
            path.write_text(json.dumps(ended, indent=2) + "\n")
            print(step.name, ended[step.name], flush=True)
    return int(any(found["ended"] != 0 for found in ended.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
