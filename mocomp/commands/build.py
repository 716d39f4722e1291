"""mocomp build: the engines of an artifact that was converted with --emulate, built on the machine that has the GPU."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mocomp import report as reports
from mocomp import terminal
from mocomp.capability.tensorrt import graph_gaps
from mocomp.commands.parity import ParityOptions, opened, parity
from mocomp.deployment import Deployment, Engine
from mocomp.errors import BadInput, MissingDependency, ParityFailed, Usage
from mocomp.lowering import engine_files
from mocomp.lowering.engine import missing_tensorrt
from mocomp.lowering.onnx_session import DATA, load
from mocomp.lowering.tensorrt_graphs import parts_in
from mocomp.lowering.this_gpu import compute_capability, tensorrt_release
from mocomp.opening import as_recorded, named_target, open_target, refuse
from mocomp.report import page
from mocomp.verify.parity import Parity
from mocomp.weights import disk
from mocomp.weights.output import new_directory
from mocomp.weights.own_files import own_file

FIXED = ("engines",)
"""Options that a graph was made for, and an engine cannot change."""


@dataclass
class Built:
    """What was built: the files that are new, and the verdict on them, or why there is none."""

    directory: str
    files: list[str]
    parity: Parity | None = None
    notes: list[str] = field(default_factory=list)


def build(directory: Path, changed: Mapping[str, Any], reference: str = "", trust_remote_code: bool = False) -> Built:
    """Build the engines of the artifact in `directory`, with the options that it was converted with but for those `changed`,
    and prove them against the source, or `reference`, where that is here.

    The artifact is replaced when all is built and proven, and stays as it is when anything fails. Raises BadInput for what
    is no artifact of target tensorrt, or holds links, Usage for options that it cannot have, MissingDependency without
    TensorRT, Unsupported for what the TensorRT and the GPU of this machine do not take, ParityFailed.
    """
    data = reports.read(directory)
    engine = _asked(directory, data, changed)
    if (reason := missing_tensorrt()) is not None:
        what, _, fix = reason.partition(": ")
        raise MissingDependency(what, where="mocomp build", fix=fix)
    with new_directory(directory, force=True, mark=reports.NAME) as made:
        beside = made.path
        _copy(directory, beside)
        parts = parts_in(beside, engine.profiles)
        refuse([gap for part in parts for gap in graph_gaps(load(beside, part.graph), engine.tensorrt, engine.gpu)])
        if reference or Path(data["source"]).exists():  # what is wrong with it is told before the long work
            opened(beside, reference, trust_remote_code)
        files = engine_files.build_all(beside, parts, engine)
        if engine.triton:
            files += engine_files.for_triton(beside, parts)
        _write(beside, data, engine, files)
        built = Built(str(directory), files)
        _prove(beside, data, ParityOptions(reference=reference, trust_remote_code=trust_remote_code), built)
    return built


def _asked(directory: Path, data: dict[str, Any], changed: Mapping[str, Any]) -> Deployment:
    if data["target"]["target"] != "tensorrt":
        raise BadInput(
            f"it is for {data['target']['target']}", where=str(directory), fix="Convert with --target tensorrt --emulate first."
        )
    if data["options"]["weights"] == "none":
        raise BadInput("it is a graph without weights", where=str(directory), fix="Convert again with --weights all.")
    known = {f.name for f in dataclasses.fields(Engine)}
    if wrong := [name for name in changed if name in FIXED or name not in known]:
        raise Usage(f"{wrong[0]} is what the graph was made for", where=str(directory), fix="Convert again to change it.")
    here = {"gpu": compute_capability(), "tensorrt": tensorrt_release()}
    found = {name: value for name, value in here.items() if value}
    engine = as_recorded(data, {**changed, **found, "emulate": False})
    named_target("tensorrt", engine)  # which refuses options that contradict each other
    return engine


def _write(directory: Path, data: dict[str, Any], engine: Deployment, files: list[str]) -> None:
    """The report of the artifact as it now is: built for this machine, and not proven yet."""
    target = open_target("tensorrt", engine)
    known = {field.name for field in dataclasses.fields(Deployment)}
    data["options"] |= {name: value for name, value in dataclasses.asdict(engine).items() if name in known}
    data["target"] = target.describe()
    data["artifact"]["files"] = list(dict.fromkeys([*data["artifact"]["files"], *files]))
    data["parity"], data["notes"] = None, [note for note in data["notes"] if "no engine was built" not in note]
    _save(directory, data)


def _prove(directory: Path, data: dict[str, Any], options: ParityOptions, built: Built) -> None:
    if not options.reference and not Path(data["source"]).exists():
        note = "not proven: the source is not on this machine; say `mocomp parity DIR --reference SOURCE` where it is"
        built.notes.append(note)
        data["notes"].append(note)
        _save(directory, data)
        return
    terminal.say("parity of the engines that were built")
    verdict = parity(directory, None, options)
    assert isinstance(verdict, Parity)
    if not verdict.passed:
        raise ParityFailed("\n  - ".join(["parity failed:", *verdict.failures[:8]]), where=str(directory))
    built.parity = verdict
    data["parity"] = dataclasses.asdict(verdict) | {
        "passed": True, "worst": verdict.worst, "agreement": verdict.agreement
    }  # fmt: skip
    _save(directory, data)


def _save(directory: Path, data: dict[str, Any]) -> None:
    disk.write_text(directory / reports.NAME, json.dumps(data, indent=1) + "\n")
    page.write(directory)


def _copy(directory: Path, beside: Path) -> None:
    """All files of an artifact but its plans. Raises BadInput for links and for what is no file: in an artifact of somebody
    else's they would bring any file of this machine along."""
    for place, folders, names in os.walk(directory):
        for path in [Path(place) / name for name in (*folders, *names)]:
            inside = path.relative_to(directory)
            if path.is_symlink():
                raise BadInput("it is a link", where=str(path), fix="Copy the file itself into the artifact.")
            if path.is_dir():
                disk.make_directory(beside / inside)
            elif path.suffix != ".plan":
                _copy_file(own_file(directory, str(inside)), beside / inside)


def _copy_file(source: Path, target: Path) -> None:
    """A copy; of the weights, which are as large as the model and do not change, a second name where the disk can do that."""
    if source.name == DATA:
        disk.link_or_copy(source, target)
    else:
        disk.copy(source, target)
