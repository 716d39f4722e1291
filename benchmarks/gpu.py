"""One layer on one GPU: mocomp's artifacts, torch in every way it has, and what the GPU could do at best, in one run.

    python benchmarks/gpu.py                                    # everything; results in benchmarks/results/gpu-<device>.json
    python benchmarks/gpu.py --layers qwen3 --tokens 1,16       # a part; a run that was cut off goes on where it stopped
    python benchmarks/gpu.py --onnxruntime FOLDER --packages FOLDER     # wheels that are unpacked and not installed
    python benchmarks/gpu.py --device cpu --tiny                # the same code in small, on any machine

Subjects are torch in eager mode with each of transformers' implementations of experts, torch.compile, the exporter of
transformers with ONNX Runtime's fusions, and mocomp's artifacts for ONNX Runtime and TensorRT. A subject's numbers are
compared with torch in float32 before it is timed; one that is wrong, or cannot run, is listed with the reason. Each time
stands beside the roofline of the machine, measured in the same run, and the fastest torch.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TOKENS, FEW = (1, 16, 128, 1024, 4096), (1, 6)
LOST = 75
"""The exit code of a run whose device was lost: started again, it goes on without the subject that did it."""
DTYPES = {"cuda": ["float16", "bfloat16", "float32"], "cpu": ["float32", "bfloat16"]}


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; lists have commas."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small layers and few tokens")
    parser.add_argument("--layers", default="", help="of qwen3, mixtral, moma; all by default, the unlike two if tiny")
    parser.add_argument("--subjects", default="", help="beginnings of their names; all by default")
    parser.add_argument("--tokens", default="")
    parser.add_argument("--onnxruntime", type=Path, help="folder into which its wheel was unpacked")
    parser.add_argument("--packages", type=Path, action="append", default=[], help="folder with other packages; repeatable")
    parser.add_argument(
        "--work", type=Path, help="where checkpoints and artifacts lie and stay; by default a temporary directory"
    )
    parser.add_argument("--output", type=Path)
    parser.add_argument("--again", action="store_true", help="measure what an earlier run has measured or excused")
    return parser.parse_args(arguments)


def find_packages(asked: argparse.Namespace) -> None:
    """Have Python find mocomp, and what was unpacked."""
    sys.path[:0] = [str(folder) for folder in [asked.onnxruntime, *asked.packages, HERE, HERE.parent] if folder]
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # an implementation that would fetch its kernels is not there


def all_subjects(device: str) -> list[Any]:
    """Every subject, whether or not it can run here."""
    from gpu_onnx import onnx_subjects
    from gpu_subjects import torch_subjects
    from gpu_tensorrt import tensorrt_subjects

    compiled_last = sorted(torch_subjects(device), key=lambda subject: "compile" in subject.name)
    return [*onnx_subjects(device), *tensorrt_subjects(), *compiled_last]


def main(arguments: list[str], subjects: Callable[[str], list[Any]] = all_subjects) -> int:
    """Measure, and print the table. Returns 0, or LOST."""
    asked = parse(arguments)
    find_packages(asked)
    import gpu_limits
    import torch
    from gpu_points import DeviceLost
    from gpu_results import Results, describe, table

    if asked.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device is here; --device cpu --tiny runs the same code in small", file=sys.stderr)
        return 2
    name = "-".join(describe(asked.device)["name"].split())
    output = asked.output or HERE / "results" / f"gpu-{name}{'-tiny' if asked.tiny else ''}.json"
    results = Results(output, asked.device, {"tiny": asked.tiny, "synchronised": True, "caches": "cold"})
    limits = gpu_limits.measure(asked.device, DTYPES[asked.device])
    results.limits(limits)
    with tempfile.TemporaryDirectory() as temporary:
        for key in (asked.layers or ("qwen3,moma" if asked.tiny else "qwen3,mixtral,moma")).split(","):
            run = LayerRun(asked, key, (asked.work or Path(temporary)) / ("tiny" if asked.tiny else "real"), results, limits)
            try:
                run.measure(subjects(asked.device))
            except DeviceLost as lost:
                subject, _, reason = str(lost).partition(": ")
                results.excuse(key, subject, f"{reason}; the device was lost with it")
                print(f"{subject}: the device was lost", file=sys.stderr)
                return LOST
    print(table(results.data))
    return 0


class LayerRun:
    """The measurement of one layer."""

    def __init__(self, asked: argparse.Namespace, key: str, work: Path, results: Any, limits: Any):
        from gpu_layers import LAYERS, build, tiny
        from gpu_subjects import Case

        layout = tiny(LAYERS[key]) if asked.tiny else LAYERS[key]
        self.asked, self.key, self.results, self.limits = asked, key, results, limits
        self.case = Case(key, build(layout, asked.device), asked.device, asked.tiny, work)
        self.known = results.layer(key, layout)

    def measure(self, subjects: list[Any]) -> None:
        """Every point that is not measured yet, with the subjects that can run."""
        from gpu_points import Point

        subjects = self._asked_for(subjects)
        points = self._points()
        if not points or not subjects:
            return
        ready = [subject for subject in subjects if self._prepared(subject)]
        for scope, inputs, truth in points:
            tokens = inputs.ids.shape[1]
            rows = Point(self.case, scope, inputs, truth, self.limits).measure(ready, self._trying)
            before = self.results.point(self.key, scope, tokens)
            rows = (before["rows"] if before else {}) | rows
            self.results.add(self.key, scope, tokens, truth.experts_hit, rows)
            print(f"{self.key} {scope} {tokens} tokens: {sum('ms' in row for row in rows.values())} timed", file=sys.stderr)
        for subject in ready:
            subject.release()
        self.case.copies.clear()
        gc.collect()

    def _points(self) -> list[tuple[str, Any, Any]]:
        """(scope, inputs, what torch gives in float32) of every point that is to be measured."""
        from gpu_layers import SCOPES, draw
        from gpu_points import Truth

        default = FEW if self.asked.tiny else TOKENS
        tokens = [int(text) for text in self.asked.tokens.split(",")] if self.asked.tokens else default
        todo = [(scope, t) for t in tokens for scope in SCOPES if self._is_open(scope, t)]
        exact = self.case.model("float32")
        drawn = {t: draw(exact, t, self.asked.device) for _, t in todo}
        points = [(scope, drawn[t], Truth.of(exact, drawn[t], scope)) for scope, t in todo]
        if self.asked.device == "cuda":
            self.case.copies.pop("float32", None)  # the largest by far
        return points

    def _is_open(self, scope: str, tokens: int) -> bool:
        return self.asked.again or bool(self.asked.subjects) or self.results.point(self.key, scope, tokens) is None

    def _asked_for(self, subjects: list[Any]) -> list[Any]:
        """Those named on the command line, without those that an earlier run has excused."""
        names = tuple(name.strip() for name in self.asked.subjects.split(","))
        found = [subject for subject in subjects if subject.name.startswith(names)]
        if self.asked.again or self.asked.subjects:
            for subject in found:
                self.known["reasons"].pop(subject.name, None)
        return [subject for subject in found if subject.name not in self.known["reasons"]]

    def _trying(self, subject: str) -> None:
        self.results.trying(self.key, subject)

    def _prepared(self, subject: Any) -> bool:
        """Whether a subject is ready; if not, the reason is noted."""
        from gpu_points import LONGEST, reason_of, survive, within

        if subject.device not in ("", self.asked.device):
            self.results.excuse(self.key, subject.name, f"needs --device {subject.device}")
            return False
        self._trying(subject.name)
        try:
            with redirect_stdout(sys.stderr), within(LONGEST):
                subject.prepare(self.case)
        except (Exception, SystemExit) as error:  # whatever a subject fails with is its result
            survive(subject, self.asked.device, error)
            self.results.excuse(self.key, subject.name, reason_of(error))
            return False
        return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
