"""What `gpu.py` found, in a JSON file that is written after every point, so that a run that was cut off goes on from there."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from gpu_layers import Layout
from gpu_limits import Limits

LIBRARIES = ("torch", "transformers", "onnx", "onnxruntime", "onnxruntime-gpu", "triton", "tensorrt")


class Results:
    """`layers` holds, by layer, its layout, why subjects are not measured, and the points; a point has a row per subject."""

    def __init__(self, path: Path, device: str, settings: dict[str, Any]):
        self.path = path
        fresh = {"device": describe(device), "versions": versions(), "settings": settings, "limits": {}, "layers": {}}
        known = json.loads(path.read_text()) if path.exists() else {}
        same = all(known.get(key) == fresh[key] for key in ("device", "versions", "settings"))
        self.data: dict[str, Any] = known if same else fresh
        self._excuse_the_last()

    def save(self) -> None:
        """Write it beside and move it, so that there is always a whole one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(".new")
        beside.write_text(json.dumps(self.data, indent=2) + "\n")
        beside.replace(self.path)

    def limits(self, limits: Limits) -> None:
        self.data["limits"] = asdict(limits)

    def layer(self, key: str, layout: Layout) -> dict[str, Any]:
        """What is known of a layer."""
        return self.data["layers"].setdefault(key, {"layout": asdict(layout), "reasons": {}, "points": []})

    def trying(self, key: str, subject: str) -> None:
        """Note who is at work, to be known if the process ends with it."""
        self.data["trying"] = [key, subject]
        self.save()

    def _excuse_the_last(self) -> None:
        key, subject = self.data.pop("trying", ("", ""))
        if key:
            self.data["layers"][key]["reasons"][subject] = "the process ended with it"

    def excuse(self, key: str, subject: str, reason: str) -> None:
        """Note why a subject is not measured; later runs go on without it."""
        self.data["layers"][key]["reasons"][subject] = reason
        self.save()

    def point(self, key: str, scope: str, tokens: int) -> dict[str, Any] | None:
        """The point, if it was measured."""
        points = self.data["layers"][key]["points"]
        return next((p for p in points if (p["scope"], p["tokens"]) == (scope, tokens)), None)

    def add(self, key: str, scope: str, tokens: int, experts_hit: int, rows: dict[str, dict[str, Any]]) -> None:
        """Put in a point, or replace the one that was there."""
        points = self.data["layers"][key]["points"]
        old = self.point(key, scope, tokens)
        if old is not None:
            points.remove(old)
        self.data.pop("trying", None)
        points.append({"scope": scope, "tokens": tokens, "experts_hit": experts_hit, "rows": rows})
        self.save()


def describe(device: str) -> dict[str, Any]:
    """The GPU, or the processor, without anything that names the computer."""
    if device == "cuda":
        own = torch.cuda.get_device_properties(0)
        return {"name": own.name, "capability": f"sm_{own.major}{own.minor}", "memory_gb": round(own.total_memory / 1e9)}
    return {"name": platform.processor() or platform.machine(), "capability": "", "memory_gb": 0}


def versions() -> dict[str, str]:
    """Of the libraries that take part and are there."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def table(data: dict[str, Any]) -> str:
    """The results as text: a line per point and subject."""
    lines = []
    for key, layer in data["layers"].items():
        for subject, reason in layer["reasons"].items():
            lines.append(f"{key:8} {'':8} {'':>6} {subject:32} {reason}")
        for point in layer["points"]:
            where = f"{key:8} {point['scope']:8} {point['tokens']:6}"
            lines += [f"{where} {name:32} {_line(row)}" for name, row in point["rows"].items()]
    where = f"{'layer':8} {'scope':8} {'tokens':>6} {'subject':32}"
    heads = f"{where} {'ms':>9} {'spread':>7} {'/bound':>7} {'/torch':>7} {'error':>8}"
    return "\n".join([heads, *lines])


def _line(row: dict[str, Any]) -> str:
    if "ms" not in row:
        return row["reason"]
    torch_ratio = row["ratio_to_fastest_torch"]
    ratio = f"{torch_ratio:7.2f}" if torch_ratio else "      -"
    return f"{row['ms']:9.3f} {row['spread']:7.0%} {row['ratio_to_bound']:7.1f} {ratio} {row['error']:8.0e}"
