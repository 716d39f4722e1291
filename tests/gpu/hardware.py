"""What of a GPU, ONNX Runtime's CUDA provider and TensorRT is here, and what is missing, in words.

A provider may be listed and still not load, and ONNX Runtime then takes the CPU and only warns: so it is tried.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache

CUDA = "CUDAExecutionProvider"


def no_device() -> str | None:
    """Why there is no CUDA device, None when there is one."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return None if torch.cuda.is_available() else "no CUDA device"


def no_provider() -> str | None:
    """Why ONNX Runtime runs nothing on CUDA, None when it does."""
    if importlib.util.find_spec("onnxruntime") is None:
        return "onnxruntime is not installed"
    import onnxruntime

    if CUDA not in onnxruntime.get_available_providers():
        return f"onnxruntime {onnxruntime.__version__} has no CUDA provider"
    try:
        loaded = _session_of_nothing().get_providers()
    except Exception as error:
        return f"ONNX Runtime's CUDA provider does not load: {str(error).splitlines()[0]}"
    return None if CUDA in loaded else "ONNX Runtime's CUDA provider does not load its libraries"


def no_library(name: str) -> str | None:
    """Why a Python package cannot be imported, None when it can."""
    return None if importlib.util.find_spec(name) else f"{name} is not installed"


def _session_of_nothing():
    """A session of one node on CUDA."""
    import onnxruntime
    import torch  # noqa: F401 - brings the libraries of CUDA
    from onnx import TensorProto, helper

    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "nothing", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[CUDA])


NEEDS: dict[str, tuple[Callable[[], str | None], ...]] = {
    "gpu": (no_device, no_provider),
    "tensorrt": (no_device, lambda: no_library("tensorrt"), lambda: no_library("polygraphy")),
}
"""What a test with each of these marks needs."""


@cache
def missing(mark: str) -> str | None:
    """Everything that a mark needs and is not here, in one line; None when all is."""
    reasons = [reason for need in NEEDS[mark] if (reason := need()) is not None]
    return "; ".join(reasons) or None


if __name__ == "__main__":
    import json

    print(json.dumps({mark: missing(mark) for mark in NEEDS}, indent=2))
