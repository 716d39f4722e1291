"""What a machine has that matters on a GPU, as JSON: the device, the libraries, and what is missing for which tests."""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch", "triton", "transformers", "numpy", "onnx", "onnxruntime", "onnx_ir", "onnxscript", "safetensors", "scipy", "click",
    "rich", "jinja2", "yaml", "pytest", "tensorrt", "polygraphy",
)  # fmt: skip
SMI = ("name", "compute_cap", "memory.total", "driver_version", "clocks.max.sm", "power.limit")


def environment() -> dict[str, Any]:
    """Everything, each part with its own reason where it cannot be had."""
    found: dict[str, Any] = {"python": platform.python_version(), "libraries": {n: _version(n) for n in LIBRARIES}}
    found["gpu"] = _smi()
    try:
        import torch

        found["torch"] = {"cuda": torch.version.cuda, "available": torch.cuda.is_available()}
        import onnxruntime

        found["providers"] = onnxruntime.get_available_providers()
        from tests.gpu import hardware

        found["missing"] = {mark: hardware.missing(mark) for mark in hardware.NEEDS}
    except Exception as error:
        found["stopped"] = f"{type(error).__name__}: {error}"
    return found


def _version(name: str) -> str:
    """Of a library, or why it cannot be imported."""
    try:
        return str(getattr(importlib.import_module(name), "__version__", "there"))
    except Exception as error:  # a broken installation is no reason to stop
        return f"missing: {type(error).__name__}"


def _smi() -> str:
    if shutil.which("nvidia-smi") is None:
        return "no nvidia-smi"
    query = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    text = json.dumps(environment(), indent=2)
    for place in sys.argv[1:]:
        Path(place).write_text(text + "\n")
    print(text)
