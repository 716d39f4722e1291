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
from mocomp.errors import ParityFailed, Usage
from mocomp.ir.program import Program
from mocomp.ir.text import print_program
from mocomp.lowering.files import carry_files
from mocomp.models.binding import bind, bind_nothing
from mocomp.models.huggingface import Traced, build, trace
from mocomp.models.inspection import inserted
from mocomp.models.limits import refuse_more_layers
from mocomp.models.source import Source, open_source
from mocomp.nn.model import empty
from mocomp.opening import as_asked, open_target, refuse
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
from mocomp.registry import discover
from mocomp.report import Report, page
from mocomp.resources import Resources
from mocomp.settings import token_counts
from mocomp.targets import Target
from mocomp.verify import stored
from mocomp.verify.in_parts import verify_in_parts
from mocomp.verify.memory import way_to_prove
from mocomp.verify.parity import Parity
from mocomp.verify.verdict import verify
from mocomp.weights.checkpoint import Checkpoint, reader_of
from mocomp.weights.linking import LinkingWriter, links_of, notes_of_links
from mocomp.weights.output import new_directory


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


def convert(source_name: str, output: Path, options: ConvertOptions, resources: Resources | None = None) -> Report:
    """SOURCE as an artifact in `output`, with its proof. Raises the errors of `errors.py`; leaves all or nothing.

    When parity fails the artifact is not kept: its directory holds numbers that nobody should ship.
    """
    clock, notes = Clock(), []
    target = open_target(options.target, options)
    refuse_what_it_cannot(target, options)
    quantising.named(options)
    with (
        new_directory(output, options.force, reports.NAME, resources, as_asked("convert", options, source_name)) as made,
        quantising.scratch(made.path, executor=made.executor, journal=made.journal) as store,
    ):
        source = open_source(source_name, options.trust_remote_code, options.task)
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
                source_name,
                resources,
                target.in_parts,
            )
            notes += why
            # the numbers of that
            quality = quantising.fill(job, [candidate], notes)
            if candidate.weights:
                clock.done("quantise")
            # the artifact
            with terminal.progress("weights", sum(r.nbytes for r in traced.program.recipes.values())) as advance:
                writer = made.writer(reader_of([checkpoint, store]), advance) if checkpoint else None
                writer = LinkingWriter(writer, checkpoint) if writer and checkpoint and options.link_weights else writer
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
            source=str(source.directory.resolve()),
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
            linked=links_of(made.path),
            expert_parallel=ranks,
        )
        # the proof
        if how != "off" and writer is not None:
            stored.compare(weights, writer.read, target, made.path, artifact)
            lowered = (source, traced.interface, target, made.path, artifact)
            report.parity = (
                verify(*lowered, options.seed, report.quality, latency=report.latency)
                if how == "full"
                else verify_in_parts(*lowered, options.seed, report.quality, executor=made.executor)
            )
            add_proof(report, *lowered, options.seed, how)
            clock.done("parity")
        report.write(made.path)
        page.write(made.path)
        if report.parity is not None and not report.parity.passed:
            raise ParityFailed(_verdict(report.parity), where=source_name, fix=PARITY_FIX)
    return report


PARITY_FIX = "Nothing was kept. This is a fault of mocomp or of the target: report the model type with the lines above."


def load(source: Source, checkpoint: Checkpoint | None) -> Traced:
    """The source as a program with its recipes bound.

    Where mixtures were inserted, the class's own model is traced and the weights that they replace are left open:
    `insert_experts` puts the mixtures in, and nothing reads those weights any more.
    """
    if checkpoint is not None:
        refuse_more_layers(source.config, len(checkpoint.entries), str(source.directory))
    traced = trace(build(source), source.plan)
    live = traced.model if source.plan is None else empty(source)
    if checkpoint is None:
        bound = bind_nothing(live)
    else:
        bound, traced.unused = bind(live, checkpoint, None if source.plan else traced.program.read_weights())
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


def open_checkpoint(source: Source, options: ConvertOptions) -> AbstractContextManager[Checkpoint | None]:
    """The weights of a source, or None when the graph alone is wanted."""
    return Checkpoint(source.directory) if options.weights == "all" else nullcontext()


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
    notes = [f"{receipt.name}: {reason}" for receipt in receipts for reason in receipt.skipped]
    if traced.unused:
        notes.append(
            f"{len(traced.unused)} tensors of the checkpoint have no place in the model: {', '.join(traced.unused[:3])}"
        )
    return notes


def refuse_what_it_cannot(target: Target, options: ConvertOptions) -> None:
    """Raises Usage, before any work, for options that mean nothing, or that the target does not know what to do with."""
    refuse_unknown_pass(options.print_after)
    if options.tune and not target.tunes:
        where = f"target {options.target} on {options.device}"
        raise Usage(f"--tune with {where}, which has one way to run a mixture", fix="Use --target onnxruntime --device cpu.")
    if options.link_weights and not target.links:
        raise Usage(f"--link-weights with target {options.target}", fix="Use --target onnxruntime, or --target onnx.")
    if options.link_weights and options.weights == "none":
        raise Usage("--link-weights with --weights none", fix="Say one of them.")


def refuse_unknown_pass(name: str) -> None:
    """Raises Usage, before any work, for a name that no pass has."""
    known = discover("mocomp.passes", "Pass")
    if name and name not in known:
        raise Usage(f"no pass {name!r}; they are {', '.join(known)}")


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
