"""The machine that a benchmark runs on: what it is, and how a process is kept on a part of it."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

try:
    import resource
except ImportError:  # Windows has none
    resource = None


def machine(threads: int, versions: dict[str, str]) -> dict[str, Any]:
    """Processor, cores, memory, system and versions; nothing that names the computer."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count() or 1,
        "memory_gb": round(_memory() / 1e9, 1),
        "threads": threads,
        "os": f"{platform.system()} {platform.machine()}",
        "versions": versions,
    }


def cpus() -> list[int]:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(chosen: list[int]) -> None:
    """Keep this process on some processors, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, chosen)


def peak_gb() -> float:
    """The most memory that this process held at once, in GB: its own, and not what it was started from held."""
    status = Path("/proc/self/status")
    if status.exists():
        fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024 / 1e9
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _memory() -> int:
    info = Path("/proc/meminfo")
    if not info.exists():
        return 0
    fields = dict(line.split(":") for line in info.read_text().splitlines() if ":" in line)
    return int(fields["MemTotal"].split()[0]) * 1024
