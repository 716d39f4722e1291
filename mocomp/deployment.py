"""Where an artifact is to run, and what of that is the user's choice."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from mocomp.errors import Usage
from mocomp.settings import Options, one_of, size_in_bytes

DTYPES = ("float32", "float16", "bfloat16")
BODIES = ("auto", "dense", "gathered", "sorted")
"""How a mixture is computed where no operator does it: every expert on every token, the weights of the chosen experts gathered
for each token, or tokens sorted by expert; `auto` takes the one that suits the number of tokens."""


@dataclass(frozen=True)
class Engine(Options):
    """How TensorRT builds, by TensorRT's own names. `profiles` are texts such as `prefill:batch=1..4,sequence=1..512..4096`,
    which `lowering/profiles.py` reads; none asks for one that prefills and one that decodes."""

    profiles: tuple[str, ...] = ()
    engines: str = "one"
    workspace: str = ""
    timing_cache: str = ""
    builder_optimization_level: int = 3
    hardware_compatibility_level: str = "none"
    version_compatible: bool = False
    strip_plan: bool = False
    refit: bool = False
    weight_streaming: bool = False
    tf32: bool = False
    triton: bool = False

    def __post_init__(self) -> None:
        one_of("engines", self.engines, ("one", "two"))
        one_of("builder_optimization_level", self.builder_optimization_level, tuple(range(6)))
        one_of(
            "hardware_compatibility_level",
            self.hardware_compatibility_level,
            ("none", "ampere_plus", "same_compute_capability"),
        )
        if self.workspace:
            size_in_bytes(self.workspace, "workspace")


@dataclass(frozen=True)
class Deployment(Engine):
    """`gpu` is a compute capability such as `sm_90`, `tensorrt` a version such as `11.4`; where they are left out, those of
    this machine. `emulate` is for machines that have neither: what would run there is proven here, in ONNX Runtime on the CPU
    and in float32, and an engine is not built. `accuracy_level` is how far operators may round activations for speed, in ONNX
    Runtime's numbers; 0 is not at all. `opset` 0 is what the target takes for itself."""

    device: str = "cpu"
    dtype: str = "float32"
    accuracy_level: int = 0
    mixture: str = "auto"
    opset: int = 0
    gpu: str = ""
    tensorrt: str = ""
    emulate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("device", self.device, ("cpu", "cuda"))
        one_of("dtype", self.dtype, DTYPES)
        one_of("mixture", self.mixture, BODIES)
        one_of("accuracy_level", self.accuracy_level, (0, 1, 2, 3, 4))
        one_of("opset", self.opset, (0, 21, 22, 23, 24))
        if self.gpu and not re.fullmatch(r"sm_\d{2,3}", self.gpu):
            raise Usage(f"--gpu {self.gpu!r} is no compute capability", fix="Say sm_90 for an H100, sm_100 for a B200.")
        if self.tensorrt and not re.fullmatch(r"\d+\.\d+", self.tensorrt):
            raise Usage(f"--tensorrt {self.tensorrt!r} is no version", fix="Such as 11.4.")

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """What the options of an earlier command, which may be of an older version and of anybody, say of it: never a file to
        write. Raises Usage for a value of another type or that there is not."""
        known = {field.name for field in dataclasses.fields(cls)}
        said = cls.typed({name: value for name, value in options.items() if name in known})
        said["timing_cache"] = ""
        return cls(**said)
