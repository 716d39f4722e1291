"""What `gpu.py` compares: the contract of a subject, and the subjects of torch.

A subject that cannot run says why, and the others are measured without it.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from gpu_layers import SCOPES, Inputs, Layout, OneLayer
from torch import Tensor

GATHERED = {"cuda": 8 << 30, "cpu": 1 << 28}
"""Bytes of weights that `batched_mm`, which gathers those of every token, is still asked for."""
TOLERANCE = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2, "int4": 0.3}
"""The largest |a - b| / |b| of a token's outputs that rounding explains; of 4 bits what plain rounding of random weights
costs. A token that goes through one wrong expert of eight is off by a half."""


class Unavailable(Exception):
    """Why a subject cannot run here, or not at this point."""


@dataclass
class Case:
    """One layer under measurement: its model in bfloat16, where it runs, and a directory to work in."""

    key: str
    layer: OneLayer
    device: str
    tiny: bool
    work: Path
    copies: dict[str, OneLayer] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return self.layer.layout

    def model(self, dtype: str) -> OneLayer:
        """The layer in another type, made once."""
        if dtype not in self.copies:
            self.copies[dtype] = copy.deepcopy(self.layer).to(getattr(torch, dtype))
        return self.copies[dtype]


class Subject(ABC):
    """Something that computes the layer. `dtype` is that of its activations, `numbers` that of its experts' weights."""

    device: str = ""
    """Where it has to run; empty for anywhere."""
    scopes: ClassVar[tuple[str, ...]] = SCOPES
    """What of a layer it can compute."""

    def __init__(self, name: str, dtype: str, numbers: str = ""):
        self.name, self.dtype, self.numbers = name, dtype, numbers or dtype

    @property
    def bits(self) -> float:
        """Of a weight of an expert, with its share of the scales."""
        return float(torch.finfo(getattr(torch, self.dtype)).bits)

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.numbers]

    @property
    def from_torch(self) -> bool:
        """Whether it is what the others are measured against."""
        return self.name.startswith("torch ")

    @abstractmethod
    def prepare(self, case: Case) -> None:
        """Make it ready for a layer. Raises Unavailable."""

    @abstractmethod
    def call(self, scope: str, inputs: Inputs) -> Callable[[], Tensor]:
        """What runs it once on inputs that lie on the device, and gives its output. Raises Unavailable."""

    @abstractmethod
    def release(self) -> None:
        """Let go of what `prepare` made."""


class Torch(Subject):
    """transformers with one of its implementations of experts, `compiled` or not."""

    def __init__(self, experts: str, dtype: str, compiled: bool = False):
        super().__init__(f"torch {'compile ' if compiled else ''}{experts} {dtype}", dtype)
        self.experts, self.compiled = experts, compiled
        self.run: Any = None
        self.case: Any = None

    def prepare(self, case: Case) -> None:
        model = case.model(self.dtype)
        own = copy.deepcopy(model, {id(p): p for p in model.parameters()})  # the same weights in memory
        own.stock.set_experts_implementation(self.experts)
        self.case = case
        self.run = own
        if self.compiled:
            self.run = compile_layer(own, case)
        else:
            self._try(own)

    def call(self, scope: str, inputs: Inputs) -> Callable[[], Tensor]:
        self._refuse_gathering(inputs.ids.shape[1])
        given = inputs.of(scope, getattr(torch, self.dtype))

        @torch.inference_mode()
        def run() -> Tensor:
            return self.run(*given)

        return run

    def release(self) -> None:
        self.run = self.case = None
        if self.compiled:
            torch.compiler.reset()

    def _try(self, own: OneLayer) -> None:
        """Fail before any point where its kernels are not installed, or not for this type."""
        with torch.inference_mode():
            own(torch.full((1, 2), 3, device=self.case.device))

    def _refuse_gathering(self, tokens: int) -> None:
        layout = self.case.layout
        size = tokens * layout.chosen * layout.weights_per_expert * self.bits / 8
        if self.experts == "batched_mm" and size > GATHERED[self.case.device]:
            raise Unavailable(f"would gather {size / 1e9:.0f} GB of weights")


def compile_layer(layer: OneLayer, case: Case) -> Callable[..., Tensor]:
    """torch.compile with CUDA graphs; on the CPU its tracing alone, since making code there takes minutes."""
    import torch._dynamo as dynamo

    dynamo.config.recompile_limit = 64  # both scopes of several layers are calls of one function
    if case.device == "cuda":
        return torch.compile(layer, mode="reduce-overhead")
    return torch.compile(layer, backend="eager")


def torch_subjects(device: str) -> list[Subject]:
    """Every implementation of experts that this transformers has, and the two that compile as a whole compiled."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    names = ["eager", *sorted(set(ALL_EXPERTS_FUNCTIONS.keys()) - {"mocomp"})]
    dtypes = ("bfloat16", "float16") if device == "cuda" else ("float32", "bfloat16")
    plain: list[Subject] = [Torch(name, dtype) for dtype in dtypes for name in names]
    compiled = ("batched_mm", "grouped_mm") if device == "cuda" else ("grouped_mm",)
    return plain + [Torch(name, dtypes[0], compiled=True) for name in compiled]
