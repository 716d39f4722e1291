"""Where the numbers of a conversion go wrong: the first pass after which they do, and the first layer.

A program runs after every pass, so each is compared with the original layer by layer, and so is the artifact in the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from mocomp import terminal
from mocomp.errors import MocompError
from mocomp.ir.program import Program
from mocomp.models.interface import Interface
from mocomp.passes import Pass, run
from mocomp.verify.judging import LayerError, judge
from mocomp.verify.program_trail import Failed, Values, follow_program
from mocomp.verify.tolerance import Tolerance
from mocomp.verify.trail import OUTPUTS, Trail
from mocomp.weights.recipes import Recipe

TRACE, ARTIFACT = "trace", "artifact"
"""What the stages are called that are no pass: the first, and the last."""


@dataclass
class Stage:
    """A program after one pass, or the artifact, beside the original."""

    name: str
    layers: list[LayerError]

    @property
    def error(self) -> float:
        return max((layer.error for layer in self.layers), default=0.0)

    @property
    def first(self) -> LayerError | None:
        """The first layer that leaves the tolerance."""
        return next((layer for layer in self.layers if layer.fault), None)

    @property
    def whole(self) -> bool:
        """Whether it was compared to the end, or to a fault."""
        return self.first is not None or any(layer.layer == OUTPUTS for layer in self.layers)


@dataclass
class Bisection:
    """The verdict: a stage for each pass and one for the artifact, on what was asked."""

    passes: list[Stage]
    artifact: Stage | None
    tolerance: Tolerance
    inputs: str
    notes: list[str] = field(default_factory=list)

    @property
    def stages(self) -> list[Stage]:
        """All of them, in their order."""
        return [*self.passes, *([self.artifact] if self.artifact is not None else [])]

    @property
    def culprit(self) -> tuple[Stage, LayerError] | None:
        """The first stage that leaves the tolerance, and its first layer that does."""
        return next(((stage, stage.first) for stage in self.stages if stage.first is not None), None)

    @property
    def passed(self) -> bool:
        return self.culprit is None and all(stage.whole for stage in self.stages)

    @property
    def first_pass(self) -> str | None:
        return None if self.culprit is None else self.culprit[0].name

    @property
    def first_layer(self) -> str | None:
        return None if self.culprit is None else self.culprit[1].layer

    @property
    def words(self) -> str:
        """One sentence that names the culprit with its numbers, or says that there is none."""
        if self.culprit is None and not self.passed:
            return "no verdict: rounding chose other experts in every sequence, and what is behind cannot be compared"
        if self.culprit is None:
            passes, own = (max((s.error for s in found), default=0.0) for found in (self.passes, self.stages[-1:]))
            told = "" if self.artifact is None else f", {own:.1e} in the artifact"
            return f"nothing leaves the tolerance: largest error {passes:.1e} after {len(self.passes)} passes{told}"
        stage, layer = self.culprit
        before = next((s for s in reversed(self.stages[: self.stages.index(stage)])), None)
        known = None if before is None else next((x for x in before.layers if x.layer == layer.layer), None)
        was = "" if before is None or known is None else f" (after {before.name}: {known.error:.1e})"
        return f"{_name(stage.name)} leaves the tolerance first in {layer.layer}, off by {layer.error:.1e}{was}: {layer.fault}"


def _name(stage: str) -> str:
    return {TRACE: "the trace itself", ARTIFACT: "the artifact, and no pass,"}.get(stage, f"pass {stage}")


def bisect(
    program: Program,
    steps: Sequence[Pass],
    trail: Trail,
    interface: Interface,
    values: Values,
    tolerance: Tolerance,
    start: str = TRACE,
) -> Iterator[Stage]:
    """The program as it is (called `start`, and left out where that is empty), then after each of `steps`, judged.

    It ends early where a pass does not take a program in which something was found before; a pass that refuses a program that
    was right raises what it raises.
    """
    stage, left = None, None
    for name, step in [*([(start, None)] if start else []), *((step.name, step) for step in steps)]:
        terminal.stop_if_interrupted()
        try:
            if step is not None:
                run(step, program)
        except MocompError:
            if stage is None or stage.first is None:
                raise
            return
        if stage is not None and left == _text(program):
            stage = Stage(name, stage.layers)
        else:
            stage, left = _judged(name, program, trail, interface, values, tolerance), _text(program)
        yield stage


def number(stages: Sequence[Stage]) -> None:
    """Tell the second time of a pass that runs twice from the first, by its name."""
    seen: dict[str, int] = {}
    for stage in stages:
        seen[stage.name] = seen.get(stage.name, 0) + 1
        stage.name = stage.name if seen[stage.name] == 1 else f"{stage.name} ({seen[stage.name]})"


def _text(program: Program) -> tuple[str, dict[str, Recipe]]:
    """All that decides what a program computes; a pass that leaves it as it was need not be judged again."""
    return str(program.graph), dict(program.recipes)


def _judged(name: str, program: Program, trail: Trail, interface: Interface, values: Values, tolerance: Tolerance) -> Stage:
    try:
        followed = follow_program(program, values.of(program), trail, interface)
    except Failed as failure:
        own = next((layer for layer in trail.layers if layer in failure.modules), OUTPUTS)
        return Stage(name, [LayerError(own, float("inf"), fault=f"it cannot be run there: {failure.reason}")])
    return Stage(name, judge(followed, trail, tolerance))
