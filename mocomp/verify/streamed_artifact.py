"""An artifact run on many cases, a part of its graph at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from mocomp import terminal
from mocomp.lowering.parts_session import PartsSession
from mocomp.targets import Arrays
from mocomp.verify.parity import run_case
from mocomp.verify.reference import Baseline
from mocomp.verify.released import give_back
from mocomp.verify.turns import Turns


def answers_of(session: PartsSession, baseline: Baseline) -> list[tuple[Arrays, Arrays]]:
    """What it answers in each case of a baseline, as of `run_case`."""
    with terminal.progress("parity: running the artifact, part by part", len(session.parts), "parts") as advance:
        return InTurn(session, advance).answers(baseline)


class InTurn:
    """Runs the cases of a baseline in step, so that each part is opened once for all."""

    def __init__(self, session: PartsSession, advance):
        self.session, self.advance = session, advance
        self.turns = Turns(self._open)
        self._opened: set[int] = set()

    def answers(self, baseline: Baseline) -> list[tuple[Arrays, Arrays]]:
        works = [partial(run_case, self._run, baseline.interface, case, given) for case, given, _ in baseline.runs]
        try:
            return self.turns.run(works)
        finally:
            self._close()

    def _run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        values = self.session.begin(inputs)
        for index in range(len(self.session.parts)):
            self.turns.want(index)
            self.session.step(index, values)
        return self.session.end(values)

    def _open(self, index: int) -> None:
        self._close()
        self.session.open(index)
        self.advance(index not in self._opened)
        self._opened.add(index)

    def _close(self) -> None:
        self.session.close()
        give_back()
