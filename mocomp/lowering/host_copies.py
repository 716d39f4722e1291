"""Copies between the GPU and the CPU inside a run, as the profile of an ONNX Runtime session tells them.

A node that the GPU has no operator for runs on the CPU: what it reads is copied there first, and what it gives back again,
while the GPU waits. ONNX Runtime puts `MemcpyToHost` and `MemcpyFromHost` nodes around such nodes.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mocomp.errors import BadInput
from mocomp.lowering.cuda_session import BoundSession
from mocomp.lowering.onnx_session import MODEL, session

COPIES = ("MemcpyToHost", "MemcpyFromHost")
CPU = "CPUExecutionProvider"


@dataclass(frozen=True)
class HostCopies:
    """Of one run: the copies, by their node's name, and how many nodes of each operator ran on the CPU."""

    copies: tuple[str, ...]
    on_cpu: dict[str, int]

    def __str__(self) -> str:
        operators = ", ".join(f"{count} {name}" for name, count in sorted(self.on_cpu.items()))
        return f"{len(self.copies)} copies between GPU and CPU inside a run" + (
            f"; on the CPU: {operators}" if operators else ""
        )


def copies_of_run(directory: Path, inputs: Mapping[str, np.ndarray], device: str) -> HostCopies:
    """The copies of a run of the artifact in `directory` whose inputs and outputs lie on `device`."""
    with tempfile.TemporaryDirectory() as place:
        opened = session(str(directory / MODEL), directory, device, profile=str(Path(place) / "run"))
        BoundSession(opened, device).staying(inputs)()
        return host_copies(Path(opened.end_profiling()))


def host_copies(profile: Path) -> HostCopies:
    """The copies of the last run that a profile holds. Raises BadInput for what is no profile of ONNX Runtime."""
    try:
        events: list[dict[str, Any]] = json.loads(profile.read_text())
        if not isinstance(events, list):
            raise ValueError("no list of events")
        nodes = [event for event in _last_run(events) if event.get("cat") == "Node" and "op_name" in event.get("args", {})]
    except (ValueError, AttributeError, TypeError) as error:
        raise BadInput("no profile of ONNX Runtime", where=str(profile)) from error
    ran = {_name(event): event["args"] for event in nodes}
    copies = tuple(name for name, said in ran.items() if said["op_name"] in COPIES)
    placed = Counter(said["op_name"] for said in ran.values() if said.get("provider") == CPU and said["op_name"] not in COPIES)
    return HostCopies(copies, dict(placed) if copies else {})


def _last_run(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What happened while the last run lasted; everything where there is no such event."""
    runs = [event for event in events if event.get("cat") == "Session" and event.get("name") == "model_run"]
    if not runs:
        return events
    last = max(runs, key=lambda event: event["ts"])
    return [event for event in events if last["ts"] <= event["ts"] <= last["ts"] + last["dur"]]


def _name(event: dict[str, Any]) -> str:
    """The node of an event: ONNX Runtime adds what of it was timed."""
    return str(event["name"]).removesuffix("_kernel_time")
