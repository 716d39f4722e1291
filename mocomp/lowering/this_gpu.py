"""The GPU of this machine, as its driver tells."""

from __future__ import annotations

import ctypes
from importlib import metadata

from mocomp.deployment import Deployment

MAJOR, MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver API."""


def compute_capability() -> str:
    """That of the first GPU, such as `sm_90`; "" where there is none, or no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    device, found = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return ""
    for number, attribute in zip(found, (MAJOR, MINOR), strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(number), attribute, device):
            return ""
    return f"sm_{found[0].value}{found[1].value}"


def tensorrt_release() -> str:
    """That of the TensorRT that is installed, such as `11.4`; "" where there is none."""
    try:
        return ".".join(metadata.version("tensorrt").split(".")[:2])
    except metadata.PackageNotFoundError:
        return ""


def elsewhere(deployment: Deployment) -> str | None:
    """Why an engine for the GPU and the TensorRT that are asked for is neither built nor run here, with what to do; None where
    it is, or where nothing tells what is here."""
    gpu, release = compute_capability(), tensorrt_release()
    fix = "pass --emulate here, and run `mocomp build DIR` there"
    if gpu and deployment.gpu not in ("", gpu) and deployment.hardware_compatibility_level == "none":
        return f"this GPU is {gpu}, and it is for {deployment.gpu}: {fix}"
    if release and deployment.tensorrt not in ("", release) and not deployment.version_compatible:
        return f"this is TensorRT {release}, and it is for {deployment.tensorrt}: {fix}"
    return None
