"""A fact about a runtime: what it is said to do, a probe that sees what it does, and a table of both."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 6e-2}
"""The largest |a - b| / max |b| that the rounding of a type explains."""

ENDED = "the process ended"
LOST = 75
"""The exit code of a run that another process has to go on with."""


class DeviceLost(Exception):
    """The GPU answers no more."""


@dataclass(frozen=True)
class Fact:
    """`says` is what documentation or source states; `gpu` and `cpu` are the outcomes that follow, empty where none is known.

    A probe takes `cuda` or `cpu` and returns an outcome: `right`, `wrong: ...`, `refused: ...` or a word of its own.
    """

    name: str
    says: str
    probe: Callable[[str], str]
    gpu: str = ""
    cpu: str = ""

    def see(self, device: str) -> str:
        """What the probe sees; a probe that fails itself is an outcome as well."""
        try:
            return self.probe(device)
        except Exception as error:
            traceback.print_exc()
            return f"failed: {type(error).__name__}: {_line(error)}"

    def holds(self, device: str, seen: str) -> bool | None:
        """Whether the outcome is the one that follows from what is said; None where nothing follows."""
        expected = self.gpu if device == "cuda" else self.cpu
        return seen.partition(":")[0] == expected if expected else None


def session(model: bytes, device: str) -> Any:
    """A session of one provider; on CUDA it is an error when a node would fall back to the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if device == "cuda":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    return onnxruntime.InferenceSession(model, options, providers=[provider])


def outcome(model: bytes, feeds: dict[str, np.ndarray], expected: np.ndarray, device: str, dtype: str = "float32") -> str:
    """Run a model and compare its one output: `right`, `wrong`, `not finite`, or `refused`."""
    try:
        y = session(model, device).run(None, feeds)[0]
    except Exception as error:
        return f"refused: {_line(error)}"
    if not np.isfinite(y).all():
        return f"not finite: {np.count_nonzero(~np.isfinite(y))} of {y.size}"
    if y.shape != expected.shape:
        return f"wrong: shape {list(y.shape)}"
    error = float(np.abs(y - expected).max(initial=0) / max(float(np.abs(expected).max(initial=0)), 1e-6))
    return "right" if error <= TOLERANCE[dtype] else f"wrong: {error:.2g} off"


def rows(facts: list[Fact], device: str, output: Path | None = None) -> list[dict[str, Any]]:
    """What was seen of each fact, kept in `output` after each; those that an earlier run has kept are not seen again.

    One that a process ended with has that for its outcome. Raises DeviceLost when the GPU answers no more after one.
    """
    found: list[dict[str, Any]] = json.loads(output.read_text()) if output is not None and output.exists() else []
    known = {row["name"] for row in found}
    for fact in (fact for fact in facts if fact.name not in known):
        found.append({"name": fact.name, "says": fact.says, "seen": ENDED, "holds": None})
        _keep(found, output)
        seen = fact.see(device)
        found[-1] |= {"seen": seen, "holds": fact.holds(device, seen)}
        _keep(found, output)
        if device == "cuda":
            _refuse_lost(fact.name)
    return found


def run(facts: list[Fact], device: str, output: str = "") -> int:
    """See the facts and print the table. Returns 0, or LOST: started again with the same output, it goes on."""
    try:
        found = rows(facts, device, Path(output) if output else None)
    except DeviceLost as lost:
        print(lost)
        return LOST
    print(table(found))
    return 0


def _keep(found: list[dict[str, Any]], output: Path | None) -> None:
    if output is not None:
        output.write_text(json.dumps(found, indent=2) + "\n")


def _refuse_lost(name: str) -> None:
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        raise DeviceLost(f"the device was lost with {name}: {_line(error)}") from error


def table(found: list[dict[str, Any]]) -> str:
    """The facts as text, those that do not hold marked."""
    marks = {True: "as said", False: "DIFFERS", None: "told"}
    return "\n".join(f"{marks[row['holds']]:8} {row['name']:36} {row['seen'][:150]}" for row in found)


def _line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "")[:200]
