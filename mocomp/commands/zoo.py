"""mocomp zoo: convert the mechanisms of the zoo, each in its host, and prove each."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from mocomp import terminal
from mocomp.bench.machine import cpus, machine
from mocomp.errors import BadInput, MocompError, Unsupported, Usage
from mocomp.models.user.loading import look
from mocomp.models.user.source import ModuleSource, from_module
from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from mocomp.report import Report, versions
from mocomp.report.zoo import FAILED, PASSED, REFUSED, OnTarget, ZooLine, ZooReport
from mocomp.weights import disk
from mocomp.zoo import Entry, build, dynamic, example
from mocomp.zoo.entries import ENTRIES

TARGETS = ("onnxruntime", "onnx")
LARGEST = 1e-4
"""The largest error, relative to the largest output, with which an entry passes, whatever its target's tolerance."""


def entries_of(names: Sequence[str]) -> list[Entry]:
    """The lines of these names, all where there are none. Raises Usage for a name that no line has."""
    for name in names:
        if name not in ENTRIES:
            near = difflib.get_close_matches(name, ENTRIES, 1)
            fix = f"Did you mean {near[0]}?" if near else "mocomp zoo list names them."
            raise Usage(f"the zoo has no {name!r}", fix=fix)
    return [ENTRIES[name] for name in dict.fromkeys(names)] or list(ENTRIES.values())


def run(entries: Sequence[Entry], targets: Sequence[str] = TARGETS, output: Path | None = None) -> ZooReport:
    """Convert each of `entries` to each target and prove it at other sizes than it was traced at; one that fails stops none.

    The artifacts are kept under `output`, where there is one. Raises BadInput when that is not empty, and Usage for a target
    that is none of TARGETS: others need hardware, or take no modules.
    """
    if unknown := [name for name in targets if name not in TARGETS]:
        raise Usage(f"the zoo is not made for target {unknown[0]}", fix=f"Its targets are {', '.join(TARGETS)}.")
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise BadInput("it is there already, and not empty", where=str(output), fix="Name another directory.")
    lines = []
    with (
        tempfile.TemporaryDirectory(prefix="mocomp-zoo-") as scratch,
        terminal.progress("zoo", len(entries) * len(targets), "conversions") as advance,
    ):
        for entry in entries:
            lines.append(line_of(entry, targets, output or Path(scratch), lambda: advance(1)))
            terminal.stop_if_interrupted()
    return ZooReport(lines, machine(len(cpus()), versions()))


def line_of(entry: Entry, targets: Sequence[str], place: Path, done: Callable[[], None] = lambda: None) -> ZooLine:
    """One entry on every target, its artifacts in `place`; `done` is called after each."""
    host = entry.host.partition(":")[0]
    seen: dict[str, OnTarget] = {}
    recognised = ""
    try:
        source = from_module(build(entry), example(entry), dynamic(entry), entry.name)
    except Exception as error:
        for _ in targets:
            done()
        return ZooLine(entry.name, host, entry.paper, targets=dict.fromkeys(targets, OnTarget(FAILED, _words(error))))
    for target in targets:
        with terminal.unsaid():
            seen[target] = _converted(entry, source, target, place / entry.name / target)
            recognised = recognised or _recognised(source)
        done()
    wrong = _misrecognised(entry, recognised)
    seen = {name: OnTarget(FAILED, wrong) if wrong and on.verdict == PASSED else on for name, on in seen.items()}
    return ZooLine(entry.name, host, entry.paper, recognised, entry.note, seen)


def _converted(entry: Entry, source: ModuleSource, target: str, directory: Path) -> OnTarget:
    try:
        disk.make_directory(directory.parent)
        report = convert(source, directory, ConvertOptions(target=target))
    except Unsupported as error:
        expected = bool(entry.refused) and entry.refused in str(error)
        return OnTarget(REFUSED if expected else FAILED, entry.refused if expected else _words(error))
    except Exception as error:  # one that fails stops none
        return OnTarget(FAILED, _words(error))
    return _judged(entry, report)


def _judged(entry: Entry, report: Report) -> OnTarget:
    assert report.parity is not None
    first = {of: next(iter(times.values()))["median"] for of, times in report.latency.items()}
    error, nodes = report.parity.worst, report.artifact.nodes
    why = f"it was to be refused: {entry.refused}" if entry.refused else ""
    if error > LARGEST:
        why = f"off by {error:.1e}, and {LARGEST:.0e} is the most"
    return OnTarget(FAILED if why else PASSED, why, error, nodes, first.get("original"), first.get("artifact"))


def _recognised(source: ModuleSource) -> str:
    """The kinds of mixtures that were found, each once: "softmax_topk + ffn"."""
    try:
        blocks = look(source).recognition.blocks
    except MocompError:  # its conversion has told why
        return ""
    kinds = [f"{found.router.name if found.router else found.how} + {found.expert.name}" for found in blocks]
    return ", ".join(dict.fromkeys(kinds))


def _misrecognised(entry: Entry, recognised: str) -> str:
    if entry.recognised is None or entry.recognised == recognised:
        return ""
    return f"recognised as {recognised or 'nothing'}, and it is {entry.recognised}"


def _words(error: Exception) -> str:
    """An error on one line."""
    told = str(error) if isinstance(error, MocompError) else f"{type(error).__name__}: {error}"
    return " ".join(told.split())[:400]
