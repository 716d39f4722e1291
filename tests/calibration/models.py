"""Tiny checkpoints as programs of explicit mixtures, with rows to run them over, and as transformers runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mocomp.calibration.rows import _no_past
from mocomp.ir.program import Program
from mocomp.models.interface import Interface
from mocomp.models.source import Source, open_source
from mocomp.opening import open_target
from mocomp.options import ConvertOptions
from mocomp.pipeline import explicit, insertions, load, rewrite
from mocomp.quantising import Job
from mocomp.verify.inputs import Case, arrays
from mocomp.verify.reference import Reference
from mocomp.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class Opened:
    """A checkpoint that is open for reading, and its program."""

    source: Source
    program: Program
    interface: Interface
    checkpoint: Checkpoint

    def rows(self, *sizes: tuple[int, int], seed: int = 0) -> list[dict[str, Tensor]]:
        """Inputs of batches of (B, S); the same numbers for a batch whatever stands beside it."""
        return [self.row(batch, length, seed + i) for i, (batch, length) in enumerate(sizes)]

    def row(self, batch: int, length: int, seed: int) -> dict[str, Tensor]:
        made = arrays(self.interface, Case("row", batch, length), seed)
        row = {name: torch.from_numpy(value) for name, value in made.items()}
        return row | _no_past(self.interface, row)

    def job(self, target: str = "onnxruntime", **options: Any) -> Job:
        """What `mocomp.quantising` is asked for by such options."""
        return Job(self.program, self.source, self.interface, self.checkpoint, open_target(target), ConvertOptions(**options))

    def reference(self) -> Reference:
        """The model of transformers."""
        return Reference.load(self.source, self.interface)


@contextmanager
def opened(directory: Path) -> Iterator[Opened]:
    """A checkpoint as the pipeline has it before weights are packed."""
    source = open_source(str(directory))
    with Checkpoint(directory) as checkpoint:
        traced = load(source, checkpoint)
        rewrite(traced.program, explicit(insertions(source, traced)))
        yield Opened(source, traced.program, traced.interface, checkpoint)


def logits(reference: Reference, row: dict[str, Tensor]) -> Tensor:
    """The first output of the model of transformers."""
    given = {name: value for name, value in row.items() if not name.startswith("past_key_values")}
    with torch.no_grad():
        return reference.model(**given)[0]


@dataclass
class Mixed:
    """What one mixture was asked over some rows: x [T, H], ids [T, K], shares [T, K], and what it gave, y [T, H]."""

    x: Tensor
    ids: Tensor
    shares: Tensor
    y: Tensor


def mixtures(reference: Reference, rows: list[dict[str, Tensor]]) -> dict[str, Mixed]:
    """By the hooks of torch on the modules of transformers, all rows one after the other."""
    seen: dict[str, list[tuple]] = {name: [] for name in reference.mixtures}
    hooks = [
        stack[0].register_forward_hook(
            lambda module, args, kwargs, y, name=name: seen[name].append((*(*args, *kwargs.values())[:3], y)), with_kwargs=True
        )
        for name, stack in reference.mixtures.items()
    ]
    for row in rows:
        logits(reference, row)
    for hook in hooks:
        hook.remove()
    return {name: Mixed(*(torch.cat(parts) for parts in zip(*told, strict=True))) for name, told in seen.items()}
