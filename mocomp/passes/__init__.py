"""Passes: Program -> Program, one file each, in the order that `pipeline.py` lists.

To add one, add a file with a frozen dataclass derived from `Pass`: its fields are its options, its docstring shows
before and after and says what it leaves alone. `run` checks the stage on both sides and names the pass in any
failure, so `apply` has no checks to repeat.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar

from mocomp.errors import MocompError
from mocomp.ir import stages
from mocomp.ir.program import Program
from mocomp.ir.stages import Stage


class Numerics(Enum):
    """What a pass may do to the numbers; it picks the tolerance of the parity after it."""

    EXACT = "exact"
    REASSOCIATES = "reassociates"
    APPROXIMATES = "approximates"


@dataclass
class Changes:
    """How many places changed, and why each that looked close did not."""

    count: int = 0
    skipped: list[str] = field(default_factory=list)


@dataclass
class Receipt:
    """One line of the report: a pass that ran."""

    name: str
    options: dict[str, Any]
    changed: int
    skipped: list[str]
    seconds: float
    nodes: int


@dataclass(frozen=True)
class Pass(ABC):
    """A rewriting of a program in place."""

    name: ClassVar[str] = ""
    needs: ClassVar[Stage] = Stage.CANONICAL
    gives: ClassVar[Stage] = Stage.CANONICAL
    numerics: ClassVar[Numerics] = Numerics.EXACT

    @abstractmethod
    def apply(self, program: Program) -> Changes:
        """Edit the graph and the recipes of `program`."""


def run(step: Pass, program: Program) -> Receipt:
    """Apply a pass between two checks of the legal ops; a failure names the pass."""
    stages.check(program, step.needs, f"before {step.name}")
    begin = time.perf_counter()
    try:
        changes = step.apply(program)
        program.graph.lint()
    except MocompError:
        raise
    except Exception as error:
        raise MocompError(f"{type(error).__name__}: {error}", where=f"pass {step.name}") from error
    stages.check(program, step.gives, f"after {step.name}")
    seconds = time.perf_counter() - begin
    options = {f.name: getattr(step, f.name) for f in fields(step) if f.repr and not callable(getattr(step, f.name))}
    return Receipt(step.name, options, changes.count, changes.skipped, seconds, len(program.graph.nodes))
