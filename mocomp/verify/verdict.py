"""The verdict on an artifact: run the original, then the artifact, and compare."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mocomp import terminal
from mocomp.models.user.loading import look
from mocomp.models.user.source import ModuleSource
from mocomp.targets import Artifact, Target
from mocomp.verify import stored
from mocomp.verify.converted import Converted
from mocomp.verify.inputs import Drawn, cases, left_out, longest_of, with_modality
from mocomp.verify.latency import median_ms, of_artifact, of_original, workloads
from mocomp.verify.module_parity import verify_module
from mocomp.verify.parity import Parity, prove
from mocomp.verify.quality import Quality, judge
from mocomp.verify.reference import Baseline, Reference
from mocomp.verify.tolerance import tolerance_of


def verify(
    made: Converted,
    seed: int,
    quality: list[Quality],
    another: bool = False,
    latency: dict[str, Any] | None = None,
) -> Parity:
    """An artifact against the original, or `another` model, run by transformers in eager mode.

    One after the other: the original is let go before the artifact is loaded, so memory holds one of them. Of a quantised
    artifact, or one in 16 bits, the original is run twice: as it is, to tell what that costs (added to `quality`), and with the
    weights that the artifact was to be made of, which it then has to equal. In 16 bits a device is judged by a tolerance that
    hides small faults of the graph, so the graph's float32 twin is judged besides, on the CPU. Where there is a `latency` to
    fill in, both are timed as well, unless the artifact is emulated: how long that takes says nothing of it.
    """
    source, interface, target, directory, artifact = made.source, made.interface, made.target, made.directory, made.artifact
    if isinstance(source, ModuleSource):
        return verify_module(made, source, look(source), seed, latency)
    drawn = with_modality(source.plan)
    takes, ends = target.takes(directory), [longest_of(source.config, drawn), target.longest(directory)]
    longest = min((end for end in ends if end is not None), default=None)
    reference = Reference.load(source, interface)
    before = baseline = reference.baseline(longest, seed, drawn, "parity: running the original", takes)
    latency = None if target.deployment.emulate else latency
    loads = workloads(interface, longest, drawn) if latency is not None else {}
    original = of_original(reference.model, loads)
    rounded = stored.put(reference, target, directory, artifact)
    if rounded:
        baseline = reference.baseline(longest, seed, drawn, "parity: running the original with the artifact's weights", takes)
    del reference
    if latency is not None:
        latency |= {"original": original, "artifact": of_artifact(target.open(directory), loads)}
    if rounded:
        quality += _costs(before, target, directory, artifact, longest, drawn)
    tolerance = tolerance_of(target, artifact)
    with terminal.phase("parity: running the artifact"):
        parity = prove(baseline, target, directory, artifact.mixtures, tolerance, seed=seed, another=another, exact=True)
        few = next(iter(workloads(interface, longest, drawn).values()))
        parity.notes += target.notes_of_run(directory, few)
        parity.notes += left_out(cases(interface, ends[0]), [case for case, _, _ in baseline.runs])
    if target.deployment.dtype != "float32" and not target.deployment.emulate:
        twin = type(target)(dataclasses.replace(target.deployment, emulate=True))
        with terminal.phase("parity: running its float32 twin"):
            exact = prove(
                baseline, twin, directory, artifact.mixtures, tolerance_of(twin, artifact), seed=seed, another=another
            )
        parity.failures += [f"its float32 twin on the CPU: {failure}" for failure in exact.failures]
    return parity


def _costs(
    baseline: Baseline, target: Target, directory: Path, artifact: Artifact, longest: int | None, drawn: Drawn | None
) -> list[Quality]:
    """What an artifact loses by its weights; where its operators round activations for speed, with that and without, timed."""
    data, mixtures = "the cases of parity", [m for m in artifact.mixtures if m.layer in baseline.experts]
    if not target.accuracy_level or target.deployment.emulate:
        return [judge(Quality("artifact", "", [], data=data), baseline, target, directory, mixtures)]
    both = []
    for exact, words in ((True, "float activations"), (False, f"accuracy level {target.accuracy_level}")):
        cost = Quality("artifact", "", [], data=f"{data}, {words}")
        both.append(judge(cost, baseline, target, directory, mixtures, exact))
        runner = target.open(directory, exact=exact)
        cost.ms = {name: median_ms(runner, inputs) for name, inputs in workloads(baseline.interface, longest, drawn).items()}
    return both
