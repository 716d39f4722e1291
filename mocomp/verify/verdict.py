"""The verdict on an artifact: run the original, then the artifact, and compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mocomp import terminal
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.targets import Artifact, Target
from mocomp.verify import stored
from mocomp.verify.inputs import Drawn, longest_of, with_modality
from mocomp.verify.latency import median_ms, of_artifact, of_original, workloads
from mocomp.verify.parity import Parity, prove
from mocomp.verify.quality import Quality, judge
from mocomp.verify.reference import Baseline, Reference
from mocomp.verify.tolerance import tolerance_of


def verify(
    source: Source,
    interface: Interface,
    target: Target,
    directory: Path,
    artifact: Artifact,
    seed: int,
    quality: list[Quality],
    another: bool = False,
    latency: dict[str, Any] | None = None,
) -> Parity:
    """The artifact in `directory` against the original, or `another` model, run by transformers in eager mode.

    One after the other: the original is let go before the artifact is loaded, so memory holds one of them. Of a quantised
    artifact the original is run twice: as it is, to tell what quantisation costs (added to `quality`), and with the weights
    that the artifact has, which it then has to equal. Where there is a `latency` to fill in, both are timed as well.
    """
    drawn = with_modality(source.plan)
    longest = longest_of(source.config, drawn)
    reference = Reference.load(source, interface)
    before = baseline = reference.baseline(longest, seed, drawn, "parity: running the original")
    loads = workloads(interface, longest, drawn) if latency is not None else {}
    original = of_original(reference.model, loads)
    if artifact.formats:
        stored.put(reference, target, directory, artifact)
        baseline = reference.baseline(longest, seed, drawn, "parity: running the original with the quantised weights")
    del reference
    if latency is not None:
        latency |= {"original": original, "artifact": of_artifact(target.open(directory), loads)}
    if artifact.formats:
        quality += _costs(before, target, directory, artifact, longest, drawn)
    tolerance = tolerance_of(target, artifact)
    with terminal.phase("parity: running the artifact"):
        return prove(baseline, target, directory, artifact.mixtures, tolerance, seed=seed, another=another, exact=True)


def _costs(
    baseline: Baseline, target: Target, directory: Path, artifact: Artifact, longest: int | None, drawn: Drawn | None
) -> list[Quality]:
    """What a quantised artifact loses; where its operators round activations for speed, with that and without, and timed."""
    data = "the cases of parity"
    if not target.accuracy_level:
        return [judge(Quality("artifact", "", [], data=data), baseline, target, directory, artifact.mixtures)]
    both = []
    for exact, words in ((True, "float activations"), (False, f"accuracy level {target.accuracy_level}")):
        cost = Quality("artifact", "", [], data=f"{data}, {words}")
        both.append(judge(cost, baseline, target, directory, artifact.mixtures, exact))
        runner = target.open(directory, exact=exact)
        cost.ms = {name: median_ms(runner, inputs) for name, inputs in workloads(baseline.interface, longest, drawn).items()}
    return both
