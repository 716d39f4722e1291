"""mocomp quantize: several ways to quantise a model, side by side: size, quality, speed, and which of them are worth having."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from contextlib import ExitStack
from pathlib import Path

from mocomp import quantising, terminal
from mocomp.calibration.beside import WHILE_OPENING
from mocomp.calibration.quantiser import Candidate
from mocomp.capability import blocking
from mocomp.errors import Usage
from mocomp.models.source import open_source
from mocomp.opening import open_target
from mocomp.options import SweepOptions
from mocomp.passes.quantize_weights import expert_weights
from mocomp.pipeline import explicit, fitted, insertions, load, rewrite
from mocomp.quantising import FLOAT, MIXED, Job
from mocomp.report.sweep import Sweep, Way
from mocomp.resources import Resources
from mocomp.verify.inputs import longest_of, with_modality
from mocomp.verify.latency import median_ms, workloads
from mocomp.verify.memory import available
from mocomp.weights.checkpoint import Checkpoint, reader_of
from mocomp.weights.writer import Writer


def quantize(source_name: str, options: SweepOptions, resources: Resources | None = None) -> Sweep:
    """Every format of `options.formats` with every algorithm, all on one run of the data, each as an artifact to time.

    Nothing is kept. Raises Usage for names of none, and what reading a source raises.
    """
    _refuse_mixed(options)
    target = open_target(options.target, options)
    source = open_source(source_name, options.trust_remote_code, options.task)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mocomp-")))
        checkpoint = stack.enter_context(Checkpoint(source.directory))
        traced = load(source, checkpoint)
        rewrite(traced.program, explicit(insertions(source, traced)))
        target = target.knowing(source, traced.program)
        job = Job(traced.program, source, traced.interface, checkpoint, target, options)
        ways, candidates, notes = [], [], []
        for text, name in [(FLOAT, "rtn"), *options.ways()]:
            own = dataclasses.replace(options, quantize=text, algorithm=name)
            plan = quantising.plan(dataclasses.replace(job, options=own), notes)
            store = stack.enter_context(quantising.scratch(work, f"way{len(ways)}"))
            candidates.append(plan.candidate(traced.program, store))
            said = FLOAT if text == FLOAT else quantising.spelled(text, options.group_size)
            ways.append(Way(said, name if text != FLOAT else "", bits=_bits(job, candidates[-1])))
        qualities = quantising.fill(job, candidates[1:], notes, judged=True)
        for way, quality in zip(ways[1:], qualities, strict=True):
            way.quality = quality
        for way, candidate in zip(ways, candidates, strict=True):
            _measure(way, candidate, job, work / "artifact", _room(resources))
    return Sweep(str(source.directory), ways, notes, qualities[0].data if qualities else "")


def _refuse_mixed(options: SweepOptions) -> None:
    """Raises Usage for what is no format that a weight can have."""
    texts = [text for text, _ in options.ways()]
    if MIXED in texts or "" in texts:
        raise Usage("--try wants formats, and mixed precision is a choice among them", fix="mocomp convert --quantize mixed")


def _bits(job: Job, candidate: Candidate) -> float:
    """Bits on disk of a weight of the experts, scales and all."""
    names = [name for name in expert_weights(job.program) if name in candidate.weights]
    elements = sum(math.prod(job.program.recipes[name].shape) for name in names)
    return 8 * sum(candidate.weights[name].nbytes for name in names) / elements if elements else 32.0


def _room(resources: Resources | None) -> float:
    """Bytes that an artifact may take while it is timed: what was said, or else what is free."""
    if resources is not None and resources.memory:
        return resources.nbytes()
    return available() or math.inf


def _measure(way: Way, candidate: Candidate, job: Job, directory: Path, room: float) -> None:
    """Size and speed of the artifact of one way; or why there is none."""
    terminal.say(f"timing {way.name}")
    program = job.program.copy()
    rewrite(program, fitted(job.target, candidate.weights))
    way.nbytes = sum(program.recipes[name].nbytes for _, name in program.weights())
    gaps = blocking(job.target.gaps(program))
    if gaps:
        way.obstacle = gaps[0]
        return
    if WHILE_OPENING * way.nbytes > room:
        way.obstacle = (
            f"not timed: it takes about {WHILE_OPENING * way.nbytes / 1e9:.1f} GB, and {room / 1e9:.1f} GB may be used"
        )
        return
    assert job.checkpoint is not None and candidate.store is not None
    with tempfile.TemporaryDirectory(dir=directory.parent) as place:
        job.target.lower(program, Path(place), Writer(reader_of([job.checkpoint, candidate.store])))
        runner = job.target.open(Path(place))
        drawn = with_modality(job.source.plan)
        for name, inputs in workloads(job.interface, longest_of(job.source.config, drawn), drawn).items():
            way.ms[name] = median_ms(runner, inputs)
