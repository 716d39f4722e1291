"""mocomp parity: prove an artifact that stands, or hold any two models against each other."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mocomp import report as reports
from mocomp import terminal
from mocomp.calibration.given import given_for
from mocomp.errors import BadInput, Unsupported, Usage
from mocomp.executors import open_executor
from mocomp.models.huggingface import build, trace
from mocomp.models.source import Source, open_source
from mocomp.models.user.loading import load_module
from mocomp.opening import reopen, reopened
from mocomp.resources import Resources
from mocomp.settings import Options, not_negative, one_of
from mocomp.verify import stored
from mocomp.verify.artifact_trail import calls_of
from mocomp.verify.between import Difference, Side, between, refuse_unlike
from mocomp.verify.converted import Converted
from mocomp.verify.in_parts import verify_in_parts
from mocomp.verify.memory import way_to_prove
from mocomp.verify.parity import Parity, prove
from mocomp.verify.recorded import refuse_other_weights
from mocomp.verify.reference import Reference
from mocomp.verify.tolerance import TABLE, tolerance_of
from mocomp.verify.trail import baseline_on, follow
from mocomp.verify.verdict import verify
from mocomp.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class ParityOptions(Options):
    """Options of `mocomp parity`: where the source is if not where it was, inputs of the user's own, seed of generated ones,
    whether both are run in full or in parts (blocks), whether code of the source may run."""

    reference: str = ""
    inputs: str = ""
    text: tuple[str, ...] = ()
    seed: int = 0
    parity: str = "full"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        one_of("parity", self.parity, ("full", "blocks"))
        not_negative("--seed", self.seed)


@dataclass
class Opened(Converted):
    """A converted model with all that its report says of it."""

    options: dict[str, Any]
    report: dict[str, Any]

    def refuse_other_weights(self, resources: Resources | None) -> list[str]:
        """As `recorded.refuse_other_weights`."""
        return refuse_other_weights(self.directory, reports.NAME, self.report, self.artifact, resources)


def parity(
    first: str | Path, second: str | None = None, options: ParityOptions | None = None, resources: Resources | None = None
) -> Parity | Difference:
    """Prove again an artifact that stands, against the source it was made from or another; or compare `first` with `second`,
    each of which is an artifact, if it holds a report of mocomp, or else a source."""
    options = options or ParityOptions()
    if second is not None:
        if options.reference:
            raise Usage("--reference, and two to compare", fix="Leave it out, or name one artifact.")
        return _between(str(first), second, options)
    if is_of_module(Path(first)):
        return _of_module(Path(first), options, resources)
    made = opened(Path(first), options.reference, options.trust_remote_code)
    if not options.inputs and not options.text:
        return _on_cases(made, options, resources)
    if options.parity == "blocks":
        raise Usage("--blocks with --inputs or --text", fix="Leave one out: blocks are proven on generated inputs.")
    unknown = made.refuse_other_weights(resources)
    given = given_for(made.source, made.interface, options.inputs, options.text, options.seed)
    terminal.say(f"parity: running the original on {given.words}")
    reference = Reference.load(made.source, made.interface)
    stored.put(reference, made.target, made.directory, made.artifact)
    baseline = baseline_on(reference, given.cases)
    del reference
    terminal.say("parity: running the artifact")
    proven = prove(
        baseline,
        made.target,
        made.directory,
        made.artifact.mixtures,
        tolerance_of(made.target, made.artifact),
        seed=options.seed,
        another=bool(options.reference),
        exact=True,
    )
    proven.notes += unknown + given.notes
    return proven


def _on_cases(made: Opened, options: ParityOptions, resources: Resources | None) -> Parity:
    """On the cases that this kind of model calls for, in parts where it is asked for or the whole does not fit."""
    count = parameters_of(made.source)
    how, why = way_to_prove(options.parity, count, str(made.source.directory), resources, made.target.in_parts)
    why += made.refuse_other_weights(resources)
    another = bool(options.reference)
    if how == "full":
        verdict = verify(made, options.seed, [], another)
    else:
        executor = open_executor(resources or Resources())
        try:
            verdict = verify_in_parts(made, options.seed, [], another, executor)
        finally:
            executor.close()
    verdict.notes = why + verdict.notes
    return verdict


def is_of_module(directory: Path) -> bool:
    """Whether a directory is an artifact of a module of the user's own."""
    return (directory / reports.NAME).is_file() and reports.recorded(directory)["interface"]["kind"] == "module"


def refuse_module(directory: Path, command: str) -> None:
    """Raises Unsupported for an artifact of a module of the user's own, of which nothing says what a token is."""
    if is_of_module(directory):
        raise Unsupported(
            f"mocomp {command} knows models of tokens and images, and this is made of a module",
            where=str(directory),
            fix="Its report has parity and brief timings; `mocomp parity` proves it again.",
        )


def _of_module(directory: Path, options: ParityOptions, resources: Resources | None) -> Parity:
    """An artifact of a module against that module, opened anew as it was, or as `reference` names it, on generated inputs like
    its example, or like `inputs`."""
    if options.text or options.parity == "blocks":
        raise Usage(f"--{'text' if options.text else 'blocks'}, and the artifact is made of a module", fix="Leave it out.")
    data = reports.read(directory)
    if data["options"]["weights"] == "none":
        raise BadInput("it is a graph without weights", where=str(directory), fix="Convert again with --weights all.")
    source = reopened(directory, data, options)
    target, artifact = reopen(data), reports.artifact_from(data)
    recorded, found = reports.interface_from(data), load_module(source).interface
    if (recorded.inputs, recorded.outputs) != (found.inputs, found.outputs):
        told = f"it takes {', '.join(found.inputs)} and gives {', '.join(found.outputs)}"
        raise BadInput(f"{told}, and the artifact does not", where=source.label, fix="Name the module that it was made from.")
    notes = refuse_other_weights(directory, reports.NAME, data, artifact, resources)
    verdict = verify(Converted(source, recorded, target, directory, artifact), options.seed, [])
    verdict.notes = notes + verdict.notes
    return verdict


def parameters_of(source: Source) -> int:
    """The numbers in the checkpoint of a source."""
    with Checkpoint(source.directory) as checkpoint:
        return sum(math.prod(entry.shape) for entry in checkpoint.entries.values())


def opened(directory: Path, reference: str = "", trust_remote_code: bool = False) -> Opened:
    """An artifact beside the source it was made from, or beside `reference`. Raises BadInput for a graph without weights, and
    where the source is gone or was changed."""
    data = reports.read(directory, trust_remote_code)
    options = data["options"]
    if options["weights"] == "none":
        raise BadInput("it is a graph without weights", where=str(directory), fix="Convert again with --weights all.")
    if not reference and not Path(data["source"]).exists():
        raise BadInput("no such directory", where=data["source"], fix="Say with --reference where the source is now.")
    source = open_source(reference or data["source"], options["trust_remote_code"], options["task"])
    changed = [n for n, size in data["source_files"].items() if _size(source.directory / n) != size] if not reference else []
    if changed:
        raise BadInput(
            f"{changed[0]} is not the file that the artifact was made from",
            where=str(source.directory),
            fix="Convert again, or name the source that it was made from with --reference.",
        )
    target = reopen(data)
    return Opened(source, reports.interface_from(data), target, directory, reports.artifact_from(data), options, data)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _between(first: str, second: str, options: ParityOptions) -> Difference:
    names = [first, second]
    for name in names:
        refuse_module(Path(name), "parity DIR OTHER")
    made = [(Path(name) / reports.NAME).exists() for name in names]
    sources = [_source_of(name, is_made, options.trust_remote_code) for name, is_made in zip(names, made, strict=True)]
    sides = [
        _artifact_side(name) if is_made else _source_side(name, source)
        for name, is_made, source in zip(names, made, sources, strict=True)
    ]
    source = sources[made.index(False)] if False in made else sources[0]
    refuse_unlike(*sides)
    given = given_for(source, sides[0].interface, options.inputs, options.text, options.seed)
    found = between(sides[0], sides[1], given.cases, given.words)
    found.notes += given.notes
    return found


def _source_of(name: str, artifact: bool, trust_remote_code: bool) -> Source:
    """The source itself, or what an artifact carries of the one it was made from."""
    if not artifact:
        return open_source(name, trust_remote_code)
    data = reports.read(Path(name), trust_remote_code)
    place = data["source"] if Path(data["source"]).exists() else name
    return open_source(place, data["options"]["trust_remote_code"], data["options"]["task"])


def _artifact_side(name: str) -> Side:
    data, directory = reports.read(Path(name)), Path(name)
    if data["options"]["weights"] == "none":
        raise BadInput("it is a graph without weights", where=name, fix="Convert again with --weights all.")
    target = reopen(data)
    artifact, interface = reports.artifact_from(data), reports.interface_from(data)
    formats = dict(Counter(artifact.formats.values()))

    def run(given: Any) -> Any:
        terminal.say(f"parity: running {name}, {data['target']['target']}")
        return calls_of(target, directory, artifact, interface, given)

    return Side(name, interface, tolerance_of(target, artifact), run, formats)


def _source_side(name: str, source: Source) -> Side:
    """A source takes and gives what its trace does."""
    interface = trace(build(source), source.plan).interface

    def run(given: Any) -> Any:
        terminal.say(f"parity: running {name}, by transformers")
        return [ask.calls for ask in follow(Reference.load(source, interface), given).asked]

    return Side(name, interface, TABLE["huggingface", "float32"], run)
