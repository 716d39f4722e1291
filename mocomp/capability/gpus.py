"""GPUs by compute capability, and what runs on them."""

from __future__ import annotations

from dataclasses import dataclass

from mocomp.capability.tables import table


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU: `computes` are types of numbers beside float32 and float16 that TensorRT has kernels for."""

    capability: str
    name: str
    computes: tuple[str, ...]
    mixtures: bool
    """Whether TensorRT's IMoELayer runs there."""
    onnxruntime_wheel: bool
    """Whether the wheel of ONNX Runtime brings code for it."""


def gpus() -> dict[str, Gpu]:
    """All that are known, by compute capability such as `sm_90`."""
    return {
        capability: Gpu(capability, **fields | {"computes": tuple(fields["computes"])})
        for capability, fields in table("gpus")["gpus"].items()
    }


def with_mixtures() -> str:
    """Those that IMoELayer runs on, in words."""
    return ", ".join(gpu.capability for gpu in gpus().values() if gpu.mixtures)


def computing(kind: str) -> str:
    """The first that computes a type of numbers, in words."""
    return f"{next(gpu.capability for gpu in gpus().values() if kind in gpu.computes)} and later ones"
