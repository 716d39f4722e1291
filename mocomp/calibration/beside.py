"""Rows through an artifact beside its reference: each alone, or several together where a part of the artifact is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from mocomp.calibration.data import Row
from mocomp.errors import Unsupported
from mocomp.lowering.parts_session import PartsSession
from mocomp.models.interface import Interface
from mocomp.plans.modality import IDS
from mocomp.targets import Arrays, Artifact, Target
from mocomp.verify.inputs import Case
from mocomp.verify.memory import available
from mocomp.verify.parity import inner_values, run_case
from mocomp.verify.reference import Baseline, Observation
from mocomp.verify.streamed_artifact import InTurn

WHILE_OPENING = 2
"""Times its weights that an artifact takes: a session keeps some of them in an order of its own besides."""
TOGETHER = 128 << 20
"""Bytes of outputs of rows that go through the parts of an artifact together: more of them open the parts less often."""

Given = tuple[Case, Arrays]
Answers = Callable[[Sequence[Given]], list[Arrays]]


def case_of(row: Row) -> Given:
    """A row as a case of its own."""
    given = {name: values.numpy() for name, values in row.items()}
    return Case("row", 1, row[IDS].shape[1] if IDS in row else 1), given


def together(rows: Sequence[Row], interface: Interface, whole: bool) -> Iterator[list[Row]]:
    """Rows that are asked at once: one of them of an artifact that is in memory as a `whole`, else as many as give little."""
    group, size = list[Row](), 0
    for row in rows:
        own = 4 * case_of(row)[0].total * max(interface.vocabulary, 1)
        if group and (whole or size + own > TOGETHER):
            yield group
            group, size = [], 0
        group.append(row)
        size += own
    yield group


def loads_whole(artifact: Artifact, target: Target, memory: int) -> bool:
    """Whether all weights of an artifact are to be in memory: where `memory` bytes hold them, or it cannot be run in parts.

    Raises Unsupported for one that would have to be and does not fit.
    """
    needed, free = WHILE_OPENING * artifact.weight_bytes, available()
    if needed <= memory:
        return True
    if target.in_parts:
        return False
    if free is not None and needed > free:
        raise Unsupported(
            f"the artifact takes about {needed / 1e9:.1f} GB and cannot be run in parts, and {free / 1e9:.1f} GB are free",
            where=f"target {target.name}",
            fix="Run it on a larger machine.",
        )
    return True


def answers(target: Target, directory: Path, artifact: Artifact, interface: Interface, memory: int) -> Answers:
    """What an artifact gives for some rows, with the values inside that tell which experts are chosen."""
    expose = inner_values(artifact.mixtures)
    if loads_whole(artifact, target, memory):
        runner = target.open(directory, expose)
        return lambda rows: [run_case(runner.run, interface, case, given)[1] for case, given in rows]
    graph = target.graph(directory)
    assert graph is not None, "a target whose artifacts run in parts has a graph"
    session = PartsSession(graph[0], directory, graph[1], expose, memory // WHILE_OPENING)

    def in_parts(rows: Sequence[Given]) -> list[Arrays]:
        runs = [(case, given, Observation({})) for case, given in rows]
        return [last for _, last in InTurn(session, lambda count: None).answers(Baseline(interface, {}, runs, {}))]

    return in_parts
