"""mocomp eval: an artifact beside its source on data, row by row, so that memory does not grow with them."""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocomp import report as reports
from mocomp import terminal
from mocomp.calibration.beside import answers, case_of, loads_whole, together
from mocomp.calibration.data import Row, data_for
from mocomp.calibration.examiner import Examiner, first_of
from mocomp.commands.parity import refuse_module
from mocomp.errors import BadInput, Usage
from mocomp.models.interface import Interface
from mocomp.models.source import Source, open_source
from mocomp.opening import reopen
from mocomp.plans import modality as modalities
from mocomp.plans.modality import Modality
from mocomp.report import page, results
from mocomp.report.evaluation import Evaluation, LayerAgreement, Perplexity
from mocomp.resources import Resources
from mocomp.settings import Options, not_negative
from mocomp.targets import Arrays, Mixture
from mocomp.verify.inputs import Case
from mocomp.verify.quality import Quality
from mocomp.verify.reference import Observation, Reference

ALL, NONE = "all", "of no modality"


@dataclass(frozen=True)
class EvalOptions(Options):
    """`data` is a file of JSON lines, .npz or .safetensors, random tokens when empty; `rows` how many of it at most, evenly
    from the whole, 0 for all; `modality` NAME=SPEC texts that say whose tokens are whose; `reference` a source instead of the
    one that the artifact was made from; `seed` of what is drawn; `trust_remote_code` runs code that the source brings."""

    data: str = ""
    rows: int = 0
    modality: tuple[str, ...] = ()
    reference: str = ""
    seed: int = 0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        not_negative("rows", self.rows)
        not_negative("seed", self.seed)


def evaluate(directory: Path, options: EvalOptions, resources: Resources | None = None) -> Evaluation:
    """The artifact in `directory` beside the model it was made from, run by transformers in eager mode; kept as eval.json.

    Raises BadInput for what is no artifact, for a source that is not there any more and for data that cannot be read, Usage for
    modalities that cannot be meant, Unsupported when the memory does not suffice.
    """
    began = time.perf_counter()
    data = _report_of(directory, options.trust_remote_code)
    target = reopen(data)
    source, interface = _source_of(data, options), reports.interface_from(data)
    modality = _modality_of(source, interface, options)
    rows, notes = _rows(source, interface, options)
    artifact, memory = reports.artifact_from(data), (resources or Resources()).nbytes()
    mixtures, whole = artifact.mixtures, loads_whole(artifact, target, memory)
    with terminal.phase("eval: loading both models"):
        # the original first: it takes most while it is loaded
        reference = Reference.load(source, interface, memory)
        _refuse_another_kind(reference, interface, source)
        ask = answers(target, directory, artifact, interface, memory)
    examiner = Examiner(interface, [m for m in mixtures if m.layer in reference.experts], modality)
    with terminal.progress("eval", len(rows), "rows") as advance:
        for group in together(rows, interface, whole):
            terminal.stop_if_interrupted()
            given = [case_of(row) for row in group]
            seen = [_observed(*one, interface, reference, source) for one in given]
            for row, expected, got in zip(group, seen, ask(given), strict=True):
                _refuse_other_shapes(expected, got, interface, source)
                examiner.add(row, expected, got)
                advance(1)
    found = Evaluation(
        artifact=str(directory),
        reference=str(source.directory),
        another=options.reference,
        data=options.data or "random inputs",
        kind=interface.kind,
        seed=options.seed,
    )
    _conclude(found, examiner)
    found.notes = notes + _unseen(reference, mixtures, target.name)
    if not math.isfinite(found.error):
        found.notes.append("the artifact gives what is no number")
    found.seconds = time.perf_counter() - began
    _keep(directory, found)
    return found


def _conclude(found: Evaluation, seen: Examiner) -> None:
    """Put the figures of all rows into an evaluation."""
    quality = seen.outputs.conclude(Quality("artifact", "", []))
    found.rows, found.tokens = seen.rows, seen.tokens
    found.top1, found.kl, found.error = quality.top1, quality.kl, quality.error
    names: dict[int | None, str] = dict(enumerate(seen.modality.names if seen.modality is not None else ()))
    losses = seen.outputs.losses
    for group in [*filter(losses.__contains__, [None, *names]), *(losses.keys() - {None, *names})]:
        name = ALL if group is None else names.get(group, NONE)
        found.perplexity[name] = Perplexity(*losses[group].perplexity, losses[group].tokens)
    found.layers = [LayerAgreement(layer, share) for layer, share in seen.agreement().items()]
    if seen.vectors:
        found.vectors, found.cosine, found.retrieval = seen.vectors, seen.similarity.cosine(), seen.similarity.retrieval()


def _observed(case: Case, given: Arrays, interface: Interface, reference: Reference, source: Source) -> Observation:
    """A row through the reference."""
    own = source.plan.modality.input if source.plan is not None and source.plan.modality is not None else None
    return reference.observe(
        case, {name: values for name, values in given.items() if name not in interface.added or name == own}
    )


def _refuse_other_shapes(seen: Observation, got: Arrays, interface: Interface, source: Source) -> None:
    name = first_of(seen) if seen.outputs else interface.outputs[0]
    shapes = [list(values[name].shape) if name in values else None for values in (got, seen.outputs)]
    if shapes[0] != shapes[1]:
        raise _another_kind(f"the artifact's {name} are {shapes[0]}, and its are {shapes[1] or 'not there'}", source)


def _report_of(directory: Path, trust_remote_code: bool) -> dict[str, Any]:
    refuse_module(directory, "eval")
    data = reports.read(directory, trust_remote_code)
    if data["options"]["weights"] == "none":
        raise BadInput("it is a graph without weights", where=str(directory), fix="Convert again with --weights all.")
    return data


def _source_of(data: dict[str, Any], options: EvalOptions) -> Source:
    """The source to compare with. Raises BadInput when that of the artifact is gone or another by now."""
    fix = "Say with --reference where the source is now."
    if not options.reference and not Path(data["source"]).exists():
        raise BadInput("no such directory", where=data["source"], fix=fix)
    source = open_source(options.reference or data["source"], data["options"]["trust_remote_code"], data["options"]["task"])
    for name, size in {} if options.reference else data["source_files"].items():
        path = source.directory / name
        if not path.exists() or path.stat().st_size != size:
            raise BadInput("it is not the file that the artifact was made from", where=str(path), fix=fix)
    return source


def _modality_of(source: Source, interface: Interface, options: EvalOptions) -> Modality | None:
    """What the user says of modalities, or else what the source knows; the rest, of which nothing is said, is text."""
    if not options.modality:
        return source.plan.modality if source.plan is not None else None
    given = [text.partition("=")[0] for text in options.modality]
    names = ["other" if "text" in given else "text", *dict.fromkeys(given)]
    made = modalities.parse(names, list(options.modality), None, source.config)
    if not made.per_token or (made.input is not None and made.input not in interface.inputs):
        raise Usage(
            f"--modality tells modalities by {made.key}, and the model's inputs are {', '.join(interface.inputs[:4])}",
            fix="Say which token ids they have: --modality image=200..255",
        )
    return made


def _rows(source: Source, interface: Interface, options: EvalOptions) -> tuple[list[Row], list[str]]:
    """(the rows to run, what the user should know of them)."""
    data = data_for(source, interface, options.data, options.seed, source.plan)
    notes = data.notes if options.data else ["no --data: these are figures on random inputs, which real data may be far from"]
    count = len(data.rows)
    if not options.rows or options.rows >= count:
        return data.rows, notes
    return [data.rows[i * count // options.rows] for i in range(options.rows)], notes


def _refuse_another_kind(reference: Reference, interface: Interface, source: Source) -> None:
    """Raises BadInput for a reference that does not take what the artifact takes."""
    accepted = inspect.signature(reference.model.forward).parameters
    wanted = [name for name in interface.inputs if name not in interface.added and not name.startswith("past_key_values")]
    if missing := [name for name in wanted if name not in accepted]:
        raise _another_kind(f"the artifact takes {missing[0]}, and it does not", source)
    if interface.past and not reference.model.can_generate():
        raise _another_kind("the artifact predicts the next token, and it does not", source)
    vocabulary = getattr(source.config.get_text_config(), "vocab_size", interface.vocabulary)
    if interface.vocabulary and vocabulary < interface.vocabulary:
        raise _another_kind(f"the artifact has a vocabulary of {interface.vocabulary}, and it one of {vocabulary}", source)


def _another_kind(what: str, source: Source) -> BadInput:
    return BadInput(what, where=str(source.directory), fix="Name a model with the same inputs and outputs with --reference.")


def _unseen(reference: Reference, mixtures: list[Mixture], target: str) -> list[str]:
    """In which layers it is not compared which experts are chosen, and why."""
    layers, notes = {m.layer for m in mixtures}, []
    if silent := len(reference.experts.keys() - layers):
        notes.append(f"which experts are chosen is not compared in {silent} layers: a {target} artifact does not tell")
    if absent := len(layers - reference.experts.keys()):
        notes.append(f"which experts are chosen is not compared in {absent} layers: the reference has no mixtures there")
    return notes


def _keep(directory: Path, found: Evaluation) -> None:
    """eval.json beside the artifact's report; figures that took long are not lost for a directory that may not be written."""
    try:
        results.save(directory, results.EVAL, found.as_json())
        page.write(directory)
    except OSError as error:
        found.notes.append(f"{results.EVAL} could not be written: {error.strerror}")
