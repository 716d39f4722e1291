"""mocomp check: what a target lacks for a model, before any long work and without the hardware."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from mocomp import quantising
from mocomp import report as reports
from mocomp.capability import Gap, gathered, onnxruntime, standard, tensorrt
from mocomp.errors import BadInput, Usage
from mocomp.lowering.external_data import refuse_foreign_data
from mocomp.lowering.onnx_session import MODEL
from mocomp.lowering.onnx_session import load as load_graph
from mocomp.models.user.named import is_module
from mocomp.opening import OF_MODULES, named_target, opened
from mocomp.options import ConvertOptions
from mocomp.pipeline import explicit, fitted, insertions, load, rewrite
from mocomp.quantising import Job
from mocomp.report.check import Check
from mocomp.targets import Target

GRAPHS: dict[str, Callable[[ir.Model, ConvertOptions], list[Gap]]] = {
    "onnx": lambda model, options: standard.graph_gaps(model),
    "onnxruntime": lambda model, options: onnxruntime.graph_gaps(model, options.device, options.gpu),
    "tensorrt": lambda model, options: tensorrt.graph_gaps(model, options.tensorrt, options.gpu),
}
"""How the graphs that a target makes are checked, for those that make graphs."""


def check(subject: str, given: Mapping[str, Any]) -> Check:
    """What keeps a target from taking `subject`: a checkpoint, of which the config is read and no weights, a module of the
    user's own, whose code is run, an artifact that mocomp made, or an ONNX file. `given` are options of `ConvertOptions`; an
    artifact's own hold for what is not given.

    Raises BadInput for a file or directory that is none of these, and Usage and Unsupported for what `convert` would.
    """
    path = Path(subject)
    if is_module(subject):
        return _of_source(subject, ConvertOptions(**{**given, "weights": "none"}))
    ConvertOptions(**given).refuse_for("no module", OF_MODULES)
    if path.is_file() or path.suffix == ".onnx":
        return _of_graphs(subject, [path], ConvertOptions(**given))
    if (path / reports.NAME).exists() and (path / MODEL).exists():
        data = reports.read(path)
        recorded = data["options"] | {"target": data["target"]["target"]}
        return _of_graphs(subject, sorted(path.glob("*.onnx")), _changed(path, recorded, given))
    return _of_source(subject, ConvertOptions(**{**given, "weights": "none"}))


def _changed(path: Path, recorded: Mapping[str, Any], given: Mapping[str, Any]) -> ConvertOptions:
    try:
        made = ConvertOptions.of(recorded)
    except Usage as error:
        raise BadInput(f"odd options: {error.what}", where=str(path / reports.NAME), fix="Convert again.") from error
    return dataclasses.replace(made, **given)


def _of_graphs(subject: str, files: list[Path], options: ConvertOptions) -> Check:
    if options.target not in GRAPHS:
        raise Usage(f"target {options.target} makes no graph to check", fix=f"Targets that do: {', '.join(GRAPHS)}.")
    gaps = [gap for file in files for gap in _of_graph(file, options)]
    return Check(subject, options.target, _place(options), gathered(gaps), [])


def _of_graph(file: Path, options: ConvertOptions) -> list[Gap]:
    """The rules take a graph for valid; where it is not, they stumble, and what is wrong with it is asked then."""
    model = _read(file)
    try:
        return GRAPHS[options.target](model, options)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        why = f"not a valid graph: {_flaw(file) or error}".splitlines()[0]
        raise BadInput(why, where=str(file), fix="See what onnx.checker says of it.") from error


def _flaw(file: Path) -> str:
    """What the checker of ONNX has against a graph, if anything."""
    try:
        onnx.checker.check_model(str(file))
    except onnx.checker.ValidationError as error:
        return str(error)
    return ""


def _of_source(subject: str, options: ConvertOptions) -> Check:
    """The steps of `convert` up to the target's gaps; where these do not block, the graph is made too, without weights."""
    target = named_target(options.target, options)
    quantising.named(options)
    source, notes = opened(subject, options), []
    traced = load(source, None)
    rewrite(traced.program, explicit(insertions(source, traced)))
    job = Job(traced.program.copy(), source, traced.interface, None, target, options)
    target = target.knowing(source, job.program)
    with tempfile.TemporaryDirectory(prefix="mocomp-") as place, quantising.scratch(Path(place)) as store:
        plan = quantising.plan(job, notes)
        weights = plan.kept | plan.candidate(job.program, store).weights
        rewrite(traced.program, fitted(target, weights))
        gaps = target.gaps(traced.program)
        if not any(gap.blocks for gap in gaps):
            gaps = [*gaps, *_of_lowered(target, traced.program, Path(place) / "graph", options)]
            notes += target.notes(traced.program)
    if source.quantization:
        notes.append("its weights are quantised already; by the config alone they count as floats")
    return Check(subject, options.target, _place(_resolved(target, options)), gathered(gaps), notes)


def _of_lowered(target: Target, program: Any, directory: Path, options: ConvertOptions) -> list[Gap]:
    """Those of the graph that the program becomes, where the target has not told them: for a GPU it makes the graph itself."""
    if target.name not in GRAPHS or target.name == "tensorrt" or options.device == "cuda":
        return []
    directory.mkdir()
    target.lower(program, directory, None)
    return GRAPHS[target.name](load_graph(directory), options)


def _read(path: Path) -> ir.Model:
    if not path.exists():
        raise BadInput("no such file", where=str(path), fix="Point at an ONNX file, an artifact, or a source.")
    refuse_foreign_data(path)
    try:
        return ir.load(path)
    except Exception as error:  # of protobuf's own kinds
        raise BadInput(
            f"no ONNX file, or damaged: {error}", where=str(path), fix=f"Such as the {MODEL} of an artifact."
        ) from error


def _resolved(target: Target, options: ConvertOptions) -> ConvertOptions:
    """The options, with the TensorRT and the GPU that the target took where none were named."""
    taken = target.describe() if target.name == "tensorrt" else {}
    return dataclasses.replace(options, **{name: taken[name] for name in ("tensorrt", "gpu") if name in taken})


def _place(options: ConvertOptions) -> str:
    """What it would run on, in words."""
    if options.target == "tensorrt":
        return ", ".join(part for part in (f"TensorRT {options.tensorrt or tensorrt.TABLE['default']}", options.gpu) if part)
    if options.target == "onnxruntime":
        return ", ".join(part for part in (options.device, options.gpu if options.device == "cuda" else "") if part)
    return ""
