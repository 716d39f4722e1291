"""The proof that ranks together are the single model: against the original as any artifact is, and against the single one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np

from mocomp import terminal
from mocomp.lowering.ranks_runner import Moves, Ranks, read
from mocomp.placement.copies import unlike
from mocomp.report import Report
from mocomp.report.expert_parallel import RanksProof
from mocomp.targets import Arrays, Artifact, Mixture, MixtureRunner, Runner, Target
from mocomp.verify.converted import Converted
from mocomp.verify.inputs import Case, arrays, cases, longest_of, with_modality
from mocomp.verify.parity import LayerResult, Parity, Parts, inner_values, prove, run_case
from mocomp.verify.reference import Baseline, Observation, Routed
from mocomp.verify.tolerance import tolerance_of
from mocomp.verify.verdict import verify

SEED = 1
"""Added to the seed of the inputs: the single model was proven on others."""


class ByRanks:
    """What a target does where the ranks in a directory stand for its artifact; for `ranked`."""

    def open(self, directory: Path, expose: list[str] | None = None, exact: bool = False) -> Runner:
        """All ranks, in one process."""
        return cast(Runner, Ranks(directory, expose or [], exact))

    def open_mixture(self, directory: Path, mixture: Mixture, exact: bool = False) -> MixtureRunner:
        """The experts of one layer, on all ranks."""
        return cast(MixtureRunner, _Alone(Ranks(directory, exact=exact), mixture.layer))

    def notes_of_run(self, directory: Path, inputs: object) -> list[str]:
        """Nothing: where ranks run is not known here."""
        return []


class _Alone:
    def __init__(self, ranks: Ranks, layer: str):
        self._exchange = ranks.mixture(layer)
        self.experts = self._exchange.experts

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": self._exchange.run(inputs["x"], inputs["ids"], inputs["weights"])}


def ranked(target: Target) -> Target:
    """A target that opens the ranks beside an artifact in its place; all that is read of the artifact stays the same."""
    kind = cast(type[Target], type(f"Ranked{type(target).__name__}", (ByRanks, type(target)), {}))
    return kind(target.deployment)


def prove_ranks(made: Converted, seed: int, another: bool = False) -> tuple[RanksProof, Parity]:
    """(how the ranks compare with the single model, their verdict against the original, or `another` model). What is not
    rounding between the two, and copies that are not the same on all ranks, are among the failures of the verdict."""
    terminal.say("parity: all ranks together")
    failures = unlike(made.directory, read(made.directory))
    verdict = verify(replace(made, target=ranked(made.target)), seed, [], another)
    ranks = Ranks(made.directory, inner_values(made.artifact.mixtures), exact=True)
    drawn = with_modality(made.source.plan)
    wanted = cases(made.interface, longest_of(made.source.config, drawn), made.target.takes(made.directory))
    given = [(case, arrays(made.interface, case, seed + SEED, drawn)) for case in wanted]
    beside = compare(made, ranks, given)
    failures += [f"the ranks differ from the single model: {failure}" for failure in beside.failures]
    verdict.failures = [f"ranks: {failure}" for failure in verdict.failures] + failures
    compared = sum(case.clean > 0 for case in beside.cases)
    return _proof(len(wanted), compared, beside.worst, verdict, ranks.moves), verdict


def compare(made: Converted, ranks: Ranks, given: list[tuple[Case, dict[str, np.ndarray]]]) -> Parity:
    """The ranks judged by the single model as an artifact is by the original: choices by their margin, and outputs of those
    sequences in which nothing flipped."""
    interface, target, artifact = made.interface, made.target, made.artifact
    single = target.open(made.directory, inner_values(artifact.mixtures), exact=True)
    runs, answers = [], []
    for case, inputs in given:
        before, after = run_case(single.run, interface, case, inputs)
        runs.append((case, inputs, _observed(before, after, artifact)))
        answers.append(run_case(ranks.run, interface, case, inputs))
    alone = {m.layer: LayerResult(m.layer) for m in artifact.mixtures}
    baseline, parts = Baseline(interface, {}, runs, {}), Parts(answers, alone)
    return prove(baseline, target, made.directory, artifact.mixtures, tolerance_of(target, artifact), parts=parts)


def _observed(before: Arrays, after: Arrays, artifact: Artifact) -> Observation:
    """What the single model did in a case, as if it were the original."""
    inner = set(inner_values(artifact.mixtures))
    outputs = {name: value for name, value in after.items() if name not in inner and not name.startswith("present.")}
    past = range(sum(name.startswith("present.") for name in after) // 2)
    present = [(after[f"present.{i}.key"], after[f"present.{i}.value"]) for i in past]
    return Observation(outputs, present, _routed(after, artifact), _routed(before, artifact) if before else {})


def _routed(values: Arrays, artifact: Artifact) -> dict[str, Routed]:
    """The choices of each mixture; what came to it and what it gave are not known here, and not asked for."""
    none = np.zeros((0, 0), np.float32)
    return {m.layer: Routed(none, m.chosen(values), none, none) for m in artifact.mixtures}


def add_proof(report: Report, made: Converted, seed: int, how: str) -> None:
    """Prove the ranks that a report tells of, if there are any, and put what fails among the failures of its verdict."""
    if report.expert_parallel is None or report.parity is None:
        return
    if how != "full":
        report.expert_parallel.notes.append("the ranks were not run: together they take the memory of the whole model")
        return
    report.expert_parallel.proof, verdict = prove_ranks(made, seed)
    report.parity.failures += verdict.failures


def _proof(cases: int, compared: int, worst: float, verdict: Parity, moves: Moves) -> RanksProof:
    return RanksProof(cases, compared, worst, verdict.worst, moves.choices, moves.abroad, moves.steps, moves.crossed)
