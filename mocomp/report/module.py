"""What `mocomp inspect` tells of a module of the user's own."""

from __future__ import annotations

from dataclasses import dataclass, field

from mocomp.report.console import count, line
from mocomp.report.recognised import Recognised


@dataclass(frozen=True)
class TensorRow:
    """An input or an output: its type, and of each dimension its size, or its name where it may change."""

    name: str
    dtype: str
    shape: list[int | str]

    def words(self) -> str:
        """`scores: float32 [batch, seq, 5]`."""
        return f"{self.name}: {self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class ModuleInspection:
    """A module before its conversion: what it takes and gives, its mixtures, and blocks that look like mixtures and stay plain
    operators (`missed`), each with the reason. `obstacle` is why it cannot be traced; its outputs are not known then."""

    source: str
    model_class: str
    parameters: int
    inputs: list[TensorRow]
    outputs: list[TensorRow]
    recognised: list[Recognised]
    missed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    obstacle: str = ""


def print_module(inspection: ModuleInspection) -> None:
    """What it takes and gives, then its mixtures and what came near, and what keeps it from being converted last."""
    line(f"{inspection.model_class}, {count(inspection.parameters)} parameters")
    for way, tensors in (("input", inspection.inputs), ("output", inspection.outputs)):
        for tensor in tensors:
            line(f"  {way} {tensor.words()}")
    for one in inspection.recognised:
        line(f"  {one.words()}")
    if not inspection.recognised:
        line("  no mixture of experts")
    for text in (*inspection.missed, *inspection.notes):
        line(f"  note: {text}")
    if inspection.obstacle:
        line(f"  cannot be converted: {inspection.obstacle}", "red")
