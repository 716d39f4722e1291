"""mocomp parity --bisect: which pass, and which layer, of a conversion leaves the tolerance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from mocomp import terminal
from mocomp.calibration.given import Given, given_for
from mocomp.commands.parity import Opened, ParityOptions, opened, refuse_module
from mocomp.errors import BadInput
from mocomp.models.huggingface import Traced
from mocomp.passes.quantize_weights import banks
from mocomp.pipeline import explicit, fitted, insertions, load, parameters, rewrite
from mocomp.quant.algorithms.rtn import RTN
from mocomp.quant.formats import parse
from mocomp.quant.weight import QuantisedWeight
from mocomp.report import page
from mocomp.report.bisect import as_json
from mocomp.report.results import BISECT, save
from mocomp.verify import stored
from mocomp.verify.artifact_trail import follow_artifact, owners_of, without_mistakes
from mocomp.verify.bisect import ARTIFACT, TRACE, Bisection, Stage, bisect, number
from mocomp.verify.judging import judge
from mocomp.verify.memory import refuse_if_too_large
from mocomp.verify.program_trail import Values
from mocomp.verify.reference import Reference
from mocomp.verify.tolerance import TABLE, tolerance_of
from mocomp.verify.trail import Trail, follow
from mocomp.weights import recipes
from mocomp.weights.checkpoint import Checkpoint


@dataclass
class Run:
    """A bisection under way: the program that the passes rewrite, the original beside it, and what both are asked."""

    made: Opened
    checkpoint: Checkpoint
    traced: Traced
    reference: Reference
    given: Given
    trail: Trail

    def follow(self, words: str) -> None:
        """See anew what the original does, with the weights that it has now."""
        terminal.say(f"bisect: running the original {words}")
        self.trail = follow(self.reference, self.given.cases)


def bisect_artifact(directory: Path, options: ParityOptions) -> Bisection:
    """Trace the source of an artifact again, and compare it with the original after every pass, then the artifact; the result
    is kept as bisect.json beside the artifact.

    Raises Unsupported for a model that does not fit into memory twice, BadInput as `parity` does.
    """
    refuse_module(directory, "parity --bisect")
    made = opened(directory, options.reference, options.trust_remote_code)
    terminal.say("bisect: tracing the source")
    with _begun(made, options) as run:
        tolerance, notes = tolerance_of(made.target, made.artifact), list(run.given.notes)
        passes, program = list(_after_each_pass(run, notes)), run.traced.program
        number(passes)
        if stored.put(run.reference, made.target, directory, made.artifact):
            run.follow("with the weights of the artifact")
    trail, owners, words = run.trail, owners_of(program, run.trail), run.given.words
    del run  # and with it the original
    terminal.say("bisect: running the artifact")
    followed = follow_artifact(made.target, directory, made.artifact, trail, made.interface, owners)
    layers, mistaken = without_mistakes(judge(followed, trail, tolerance), tolerance)
    notes += [f"{name}: no value of the artifact could be told to be what it gives" for name in mistaken]
    found = Bisection(passes, Stage(ARTIFACT, layers), tolerance, words, notes)
    try:
        save(directory, BISECT, as_json(found))
        page.write(directory)
    except OSError as error:
        raise BadInput(f"{BISECT} cannot be written: {error.strerror}", where=str(directory)) from error
    return found


@contextmanager
def _begun(made: Opened, options: ParityOptions) -> Iterator[Run]:
    """The source traced, and the original loaded."""
    source = made.source
    with Checkpoint(source.directory) as checkpoint:
        traced = load(source, checkpoint)
        refuse_if_too_large(parameters(traced, source.plan), str(source.directory))
        given = given_for(source, made.interface, options.inputs, options.text, options.seed)
        terminal.say(f"bisect: running the original on {given.words}")
        reference = Reference.load(source, made.interface)
        yield Run(made, checkpoint, traced, reference, given, follow(reference, given.cases))


def _after_each_pass(run: Run, notes: list[str]) -> Iterator[Stage]:
    """The stages of the pipeline, each beside an original that holds the weights that the program is given."""
    made, program = run.made, run.traced.program
    limit, values = TABLE[made.target.name, "float32"], Values(run.checkpoint.read)
    inserted = insertions(made.source, run.traced)
    steps, start = explicit(inserted), TRACE
    if inserted:
        upto = max(steps.index(step) for step in inserted) + 1
        rewrite(program, steps[:upto])
        steps, start = steps[upto:], inserted[-1].name
        notes.append(f"before {start} the program is the class's own, whose weights the checkpoint has not: it was not run")
    yield from bisect(program, steps, run.trail, made.interface, values, limit, start)
    target = made.target.knowing(made.source, program)
    weights = _rounded(run)
    if weights:
        notes.append("the passes pack weights rounded anew to the artifact's formats; its own are compared in the artifact")
        run.follow("with weights rounded to the artifact's formats")
    yield from bisect(program, fitted(target, weights), run.trail, made.interface, values, limit, start="")


def _rounded(run: Run) -> dict[str, QuantisedWeight]:
    """The weights that are quantised in the artifact, rounded to the nearest, for the passes to pack; the original is given
    what they stand for. Its own are packed for its operators, and no pass takes them in that form."""
    program, artifact, read = run.traced.program, run.made.artifact, run.checkpoint.read
    weights: dict[str, QuantisedWeight] = {}
    floats: dict[str, torch.Tensor] = {}
    for name, text in artifact.formats.items():
        form, w = parse(text), program.recipes[name].evaluate(read).float()
        kept = form.pack(*RTN().quantise(w, form, None))
        parts = {part: recipes.literal(kept.tensors()[part]) for part in form.shapes(tuple(w.shape))}
        weights[name], floats[name] = QuantisedWeight(form.text, w.shape[-1], parts), form.dequantise(kept, w.shape[-1])
    for layer, pair in banks(program).items():
        if not floats.keys() & set(pair):
            continue
        both = [floats[name] if name in floats else program.recipes[name].evaluate(read) for name in pair]
        for expert, (w_in, w_out) in enumerate(zip(*both, strict=True)):
            run.reference.put_experts(layer, expert, w_in.numpy(), w_out.numpy())
    for name, module in artifact.linears.items():
        run.reference.put_linear(module, floats[name].numpy())
    return weights
