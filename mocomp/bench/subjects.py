"""Who takes part in a benchmark: the artifact, and what one would use instead of it."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocomp.bench.processes import Worker
from mocomp.errors import Unsupported

OURS = "mocomp"
NAMES = {"torch": "torch eager", "compile": "torch.compile", "transformers": "transformers exporter"}
"""Baselines, as options name them and as tables do."""


@dataclass(frozen=True)
class Subject:
    """A name, and what the process that holds it is told."""

    name: str
    told: dict[str, Any]


def ours(directory: Path, target: str, device: str = "cpu", tf32: bool = False) -> Subject:
    """The artifact: by ONNX Runtime alone, on `device`, where it is a model.onnx and nothing else, else by its target. `tf32`
    is of `onnx_session.session`."""
    kind = "target" if target not in ("onnx", "onnxruntime") else "onnx"
    told = {"name": OURS, "kind": kind, "directory": str(directory), "target": target, "device": device, "tf32": tf32}
    return Subject(OURS, told)


def baseline(kind: str, source: str, options: dict[str, Any], work: Path, cpus: list[int]) -> Subject:
    """One of NAMES, made ready in `work` where it has to be; `options` are those that the artifact was converted with.

    Raises Unsupported with the reason why it cannot take part.
    """
    if not Path(source).exists():
        raise Unsupported("the source that the artifact was made from is not there any more")
    told = {"source": source, "trust_remote_code": options["trust_remote_code"], "task": options["task"]}
    name = NAMES[kind]
    if kind == "compile" and _compiler() is None:
        raise Unsupported("no C++ compiler, which torch.compile needs on a CPU; install g++, or say with CXX where one is")
    if kind in ("torch", "compile"):
        return Subject(name, told | {"name": name, "kind": "torch", "compiled": kind == "compile"})
    directory = work / "exported"
    directory.mkdir()
    Worker(told | {"name": name, "kind": "exporter", "directory": str(directory)}, cpus).close()
    return Subject(name, {"name": name, "kind": "onnx", "directory": str(directory)})


def _compiler() -> str | None:
    """The C++ compiler that torch would take."""
    names = [name for name in (os.environ.get("CXX"), "g++", "clang++", "c++") if name]
    return next((found for found in map(shutil.which, names) if found), None)
