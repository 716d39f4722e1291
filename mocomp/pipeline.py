"""The whole compiler on one page: load, trace, rewrite, lower, prove, report."""

from __future__ import annotations

import dataclasses
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mocomp import quantising, terminal, tuning
from mocomp import report as reports
from mocomp.capability import fallbacks
from mocomp.errors import ParityFailed
from mocomp.ir.program import Program
from mocomp.ir.text import print_program
from mocomp.lowering.files import carry_files
from mocomp.models.binding import bind, bind_nothing
from mocomp.models.huggingface import Traced, build, trace
from mocomp.models.inspection import inserted
from mocomp.models.limits import refuse_more_layers
from mocomp.models.source import Source
from mocomp.models.user.loading import load_module, weights_of
from mocomp.models.user.source import ModuleSource
from mocomp.nn.model import empty
from mocomp.opening import as_asked, open_target, opened, refuse, refuse_what_it_cannot
from mocomp.options import ConvertOptions
from mocomp.passes import Pass, Receipt, run
from mocomp.passes.clean import Clean
from mocomp.passes.common_subexpressions import CommonSubexpressions
from mocomp.passes.fold_router_scale import FoldRouterScale
from mocomp.passes.fold_weights import FoldWeights
from mocomp.passes.fuse_norms import FuseNorms
from mocomp.passes.fuse_rotary import FuseRotary
from mocomp.passes.fuse_routing import FuseRouting
from mocomp.passes.insert_depth import InsertDepth
from mocomp.passes.insert_experts import InsertExperts
from mocomp.passes.quantize_weights import QuantizeWeights
from mocomp.placement import expert_parallel
from mocomp.placement.proof import add_proof
from mocomp.plans.plan import ModelPlan
from mocomp.quant.weight import QuantisedWeight
from mocomp.quantising import Job
from mocomp.report import Report, page
from mocomp.report.recognised import recognised_in
from mocomp.resources import Resources
from mocomp.settings import token_counts
from mocomp.targets import Target
from mocomp.verify import stored
from mocomp.verify.converted import Converted
from mocomp.verify.in_parts import verify_in_parts
from mocomp.verify.memory import way_to_prove
from mocomp.verify.parity import Parity
from mocomp.verify.verdict import verify
from mocomp.weights.checkpoint import Checkpoint, Weights, reader_of
from mocomp.weights.linking import LinkingWriter, links_of, notes_of_links
from mocomp.weights.output import new_directory
from mocomp.weights.writer import Writer


def explicit(inserted: list[Pass]) -> list[Pass]:
    """The passes up to the plain model, in order; `inserted` change it to what the checkpoint says it has become."""
    return [
        # make the trace plain
        Clean(),
        FoldWeights(),
        CommonSubexpressions(),
        # put in the mixtures that the checkpoint has and its class has not
        *inserted,
        # name what a layer is made of
        FuseNorms(),
        FuseRotary(),
        # make the mixture explicit
        FuseRouting(),
        FoldRouterScale(),
    ]


def fitted(target: Target, quantised: dict[str, QuantisedWeight]) -> list[Pass]:
    """The passes from there to the target, in order."""
    return [
        # make it small
        *([QuantizeWeights(quantised)] if quantised else []),
        # make it fit the target
        *target.passes(),
        CommonSubexpressions(),
    ]


def convert(asked: str | Source, output: Path, options: ConvertOptions, resources: Resources | None = None) -> Report:
    """A source, by its name or opened already, as an artifact in `output`, with its proof. Raises the errors of `errors.py`;
    leaves all or nothing.

    When parity fails the artifact is not kept: its directory holds numbers that nobody should ship.
    """
    clock, notes = Clock(), []
    target = open_target(options.target, options)
    refuse_what_it_cannot(target, options)
    quantising.named(options)
    with (
        new_directory(output, options.force, reports.NAME, resources, as_asked("convert", options, asked)) as made,
        quantising.scratch(made.path, executor=made.executor, journal=made.journal) as store,
    ):
        source = opened(asked, options)
        with open_checkpoint(source, options) as checkpoint:
            # a graph, and recipes for its weights
            with terminal.phase("trace"):
                traced = load(source, checkpoint)
            clock.done("trace")
            receipts = rewrite(traced.program, explicit(insertions(source, traced)), options.print_after)
            # what is to be in few bits, and whether the target can take it all
            job = Job(traced.program.copy(), source, traced.interface, checkpoint, target, options)
            target = target.knowing(source, job.program)
            plan = quantising.plan(job, notes)
            candidate = plan.candidate(job.program, store)
            weights = plan.kept | candidate.weights
            receipts += rewrite(traced.program, fitted(target, weights), options.print_after)
            clock.done("passes")
            notes += notes_of(receipts, traced)
            gaps = target.gaps(traced.program) + expert_parallel.gaps(target, traced.program, job.program, options)
            refuse(gaps)
            notes += fallbacks(gaps) + target.notes(traced.program)
            how, why = way_to_prove(
                options.parity if checkpoint else "off",
                parameters(traced, source.plan),
                source.place,
                resources,
                target.in_parts and not isinstance(source, ModuleSource),
            )
            notes += why
            # the numbers of that
            quality = quantising.fill(job, [candidate], notes)
            if candidate.weights:
                clock.done("quantise")
            # the artifact
            with terminal.progress("weights", sum(r.nbytes for r in traced.program.recipes.values())) as advance:
                writer = made.writer(reader_of([checkpoint, store]), advance) if checkpoint else None
                writer = _linking(writer, checkpoint) if options.link_weights else writer
                artifact = target.lower(traced.program, made.path, writer)
            clock.done("lower and write")
            # the best way to run it
            tuned = None
            if options.tune:
                artifact, tuned = tuning.tune(made.path, artifact, token_counts(options.tune))
                clock.done("tune")
            # its experts, shared out
            ranks = expert_parallel.write_ranks(options, source, traced.interface, target, artifact, made)
            notes += carry_files(source, traced.interface, made.path) + notes_of_links(made.path, options.link_weights)
        report = Report(
            source=source.place,
            source_files=checkpoint.sizes() if checkpoint else {},
            model=summary(source, traced),
            options=dataclasses.asdict(options),
            target=target.describe(),
            interface=traced.interface,
            passes=receipts,
            artifact=artifact,
            seconds=clock.seconds,
            memory=clock.memory,
            notes=notes,
            quality=quality,
            tuning=tuned,
            recognised=recognised_in(source),
            linked=links_of(made.path),
            expert_parallel=ranks,
        )
        # the proof
        if how != "off" and writer is not None:
            stored.compare(weights, writer.read, target, made.path, artifact)
            converted = Converted(source, traced.interface, target, made.path, artifact)
            report.parity = (
                verify(converted, options.seed, report.quality, latency=report.latency)
                if how == "full"
                else verify_in_parts(converted, options.seed, report.quality, executor=made.executor)
            )
            add_proof(report, converted, options.seed, how)
            clock.done("parity")
        report.write(made.path)
        page.write(made.path)
        if report.parity is not None and not report.parity.passed:
            raise ParityFailed(_verdict(report.parity), where=source.place, fix=PARITY_FIX)
    return report


def _linking(writer: Writer | None, checkpoint: Weights | None) -> Writer | None:
    """A writer that links what stands in the files of a checkpoint."""
    return LinkingWriter(writer, checkpoint) if writer and isinstance(checkpoint, Checkpoint) else writer


PARITY_FIX = "Nothing was kept. This is a fault of mocomp or of the target: report the model type with the lines above."


def load(source: Source, checkpoint: Weights | None) -> Traced:
    """The source as a program with its recipes bound.

    Where mixtures were inserted, the class's own model is traced and the weights that they replace are left open:
    `insert_experts` puts the mixtures in, and nothing reads those weights any more.
    """
    if isinstance(source, ModuleSource):
        return load_module(source)
    if isinstance(checkpoint, Checkpoint):
        refuse_more_layers(source.config, len(checkpoint.entries), str(source.directory))
    traced = trace(build(source), source.plan)
    live = traced.model if source.plan is None else empty(source)
    if isinstance(checkpoint, Checkpoint):
        bound, traced.unused = bind(live, checkpoint, None if source.plan else traced.program.read_weights())
    else:
        bound = bind_nothing(live)
    open_ends = bind_nothing(traced.model) if source.plan is not None else {}
    traced.program.recipes |= open_ends | bound
    return traced


def insertions(source: Source, traced: Traced) -> list[Pass]:
    """The passes that make the traced model the one that the checkpoint holds."""
    if source.plan is None:
        return []
    parameters = tuple(traced.model.state_dict())
    weights = dict(traced.program.recipes)
    steps: list[Pass] = [InsertExperts(source.plan, weights, parameters)]
    return [*steps, InsertDepth(source.plan.depths, weights)] if source.plan.depths else steps


def open_checkpoint(source: Source, options: ConvertOptions) -> AbstractContextManager[Weights | None]:
    """The weights of a source, or None when the graph alone is wanted."""
    if options.weights == "none":
        return nullcontext()
    return weights_of(source) if isinstance(source, ModuleSource) else Checkpoint(source.directory)


def rewrite(program: Program, steps: list[Pass], print_after: str = "") -> list[Receipt]:
    """Run passes, in order; the program is printed after the one of that name."""
    receipts = []
    for step in steps:
        receipts.append(run(step, program))
        if step.name == print_after:
            terminal.say(print_program(program))
    return receipts


def notes_of(receipts: list[Receipt], traced: Traced) -> list[str]:
    """What a reader of the report should know of the passes and of the checkpoint."""
    notes = traced.notes + [f"{receipt.name}: {reason}" for receipt in receipts for reason in receipt.skipped]
    if traced.unused:
        notes.append(
            f"{len(traced.unused)} tensors of the checkpoint have no place in the model: {', '.join(traced.unused[:3])}"
        )
    return notes


def summary(source: Source, traced: Traced) -> dict[str, Any]:
    """What the report says of the model."""
    return {
        "class": source.model_class.__name__,
        "model_type": source.config.model_type,
        "kind": traced.interface.kind,
        "parameters": parameters(traced, source.plan),
    }


def parameters(traced: Traced, plan: ModelPlan | None = None) -> int:
    """How many there are; tied ones count once."""
    own = sum(p.numel() for p in {id(p): p for p in traced.model.parameters()}.values())
    return own + inserted(plan or ModelPlan(), traced.model)


class Clock:
    """Seconds and peak memory (GB) of each phase; the first entry is what importing the libraries takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory = {"imports": terminal.peak_memory()}
        self._last = time.perf_counter()

    def done(self, phase: str) -> None:
        terminal.stop_if_interrupted()
        now = time.perf_counter()
        self.seconds[phase], self._last = now - self._last, now
        self.memory[phase] = terminal.peak_memory()


def _verdict(parity: Parity) -> str:
    shown = "".join(f"\n  - {failure}" for failure in parity.failures[:8])
    rest = len(parity.failures) - 8
    return "parity failed:" + shown + (f"\n  and {rest} more" if rest > 0 else "")
