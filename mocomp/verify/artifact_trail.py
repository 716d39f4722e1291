"""The trail of an artifact: inner values of its graph, found by what they are made of, since no name says what they are.

A value belongs to the last layer whose weights it is made of. What a layer gives is the last value of that layer, in the form
of the layer's output, that something behind the layer reads. A value that was taken for it by mistake would show as an error
that nothing behind it has, and is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from mocomp.ir.program import Program
from mocomp.lowering.onnx_session import load
from mocomp.models.interface import Interface
from mocomp.targets import Arrays, Artifact, Mixture, Target
from mocomp.targets.huggingface import ModelRunner
from mocomp.verify.choices import Choice, gap_of
from mocomp.verify.experts_alone import experts_error
from mocomp.verify.inputs import Case
from mocomp.verify.judging import LayerError
from mocomp.verify.parity import inner_values, run_case
from mocomp.verify.program_trail import Followed, modules_of
from mocomp.verify.reference import Reference
from mocomp.verify.tolerance import Tolerance
from mocomp.verify.trail import BEFORE, Call, Trail, follow

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
OUTSIDE = ""
"""The owner of a weight that something reads which is in no layer."""


def follow_artifact(
    target: Target, directory: Path, artifact: Artifact, trail: Trail, interface: Interface, owners: Mapping[str, str]
) -> Followed:
    """The artifact in `directory` on the cases of a trail; `owners` names the layer of each weight, as of `owners_of`."""
    given = [(ask.case, ask.given) for ask in trail.asked]
    if target.name == "huggingface":
        return Followed(calls_of(target, directory, artifact, interface, given))
    mixtures = [m for m in artifact.mixtures if m.layer in trail.mixtures]
    places = places_of(load(directory), trail, owners)
    followed = Followed(calls_of(target, directory, artifact, interface, given, places))
    for m in mixtures:
        followed.experts[m.layer] = experts_error(target, directory, m, [trail.forced[m.layer]], exact=True)
    return followed


def calls_of(
    target: Target,
    directory: Path,
    artifact: Artifact,
    interface: Interface,
    given: list[tuple[Case, Arrays]],
    places: Mapping[str, str] | None = None,
) -> list[list[Call]]:
    """What an artifact does in each call of each case, with the values that `places` names in its graph."""
    places, mixtures = places or {}, {m.layer: m for m in artifact.mixtures}
    inner = dict.fromkeys([*places.values(), *inner_values(artifact.mixtures), *(m.x for m in artifact.mixtures)])
    runner = target.open(directory, list(inner), exact=True)
    if isinstance(runner, ModelRunner):  # which has modules, and is watched as the original is
        return [ask.calls for ask in follow(Reference(runner.model, interface), given).asked]
    made = []
    for case, arrays in given:
        before, now = run_case(runner.run, interface, case, arrays)
        made.append([_call(got, places, mixtures) for got in ([before, now] if case.past else [now])])
    return made


def _call(got: Arrays, places: Mapping[str, str], mixtures: dict[str, Mixture]) -> Call:
    chosen = {name: Choice(m.chosen(got), gap_of(got[m.choice], m.k)) for name, m in mixtures.items()}
    layers = {place: got[value] for place, value in places.items()}
    return Call(got, layers, {name: got[m.x] for name, m in mixtures.items()}, chosen)


def owners_of(program: Program, trail: Trail) -> dict[str, str]:
    """The layer in which each weight is read; none for those of several layers, OUTSIDE for those that are read elsewhere."""
    layers = [name for name in trail.layers if not name.startswith(BEFORE)]
    owners: dict[str, str] = {}
    for node, name in program.weights():
        readers = {next((own for own in layers if own in modules_of(user)), OUTSIDE) for user in node.users}
        if len(readers) == 1 or OUTSIDE in readers:
            owners[name] = OUTSIDE if OUTSIDE in readers else readers.pop()
    return owners


def places_of(model: ir.Model, trail: Trail, owners: Mapping[str, str]) -> dict[str, str]:
    """The name of the value of an ONNX graph that is what each place of the trail gives, where one is found."""
    found: dict[str, str] = {}
    layers = [name for name in trail.layers if not name.startswith(BEFORE)]
    for stack in dict.fromkeys(name.rpartition(".")[0] for name in layers):
        own = [name for name in layers if name.rpartition(".")[0] == stack]
        found |= _places_of_stack(model, trail, owners, own)
    return found


def _places_of_stack(model: ir.Model, trail: Trail, owners: Mapping[str, str], own: list[str]) -> dict[str, str]:
    depth = _depths(model, owners, {name: float(i) for i, name in enumerate(own)})
    found: dict[str, str] = {}
    for i, name in enumerate(own):
        like = [v for v in depth if i <= depth[v] < i + 0.5 and _is_like(v, trail.shapes[name])]
        behind = [v for v in like if v.is_graph_output() or any(_deepest(depth, n) > depth[v] for n, _ in v.uses())]
        if behind:
            found[name] = str(behind[-1].name)
    first = BEFORE + own[0]
    ahead = [v for v in depth if depth[v] < 0 and first in trail.shapes and _is_like(v, trail.shapes[first])]
    ahead = [v for v in ahead if any(_deepest(depth, n) >= 0 for n, _ in v.uses())]
    return found | ({first: str(ahead[0].name)} if len(ahead) == 1 else {})


def _depths(model: ir.Model, owners: Mapping[str, str], layers: Mapping[str, float]) -> dict[ir.Value, float]:
    """For each value that is made of inputs the last layer that it has come through, and half a layer more behind them."""
    depth: dict[ir.Value, float] = {}
    weights = {value: owners.get(name) for name, value in model.graph.initializers.items()}
    for value in model.graph.inputs:
        depth[value] = -1.0
    for node in model.graph:
        inputs = list(_inputs(node))
        read = {weights[value] for value in inputs if value in weights}
        made = [depth[value] for value in inputs if value in depth]
        if not made:  # a weight in another form
            weights |= {value: next(iter(read), None) for value in node.outputs}
            continue
        deepest = max([*made, *(layers[name] for name in read if name is not None and name in layers)])
        behind = deepest >= 0 and OUTSIDE in read
        depth |= {value: math.floor(deepest) + 0.5 if behind else deepest for value in node.outputs}
    return depth


def _inputs(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and the branches that it may have inside."""
    yield from (value for value in node.inputs if value is not None)
    graphs = [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]
    for inner in (inner for graph in graphs for inner in graph):
        yield from _inputs(inner)


def _deepest(depth: Mapping[ir.Value, float], node: ir.Node) -> float:
    return max((depth.get(value, -1.0) for value in node.outputs), default=-1.0)


def _is_like(value: ir.Value, shape: tuple[int, int]) -> bool:
    if value.shape is None or value.dtype not in FLOATS:
        return False
    return len(value.shape) == shape[0] and value.shape[-1] == shape[1]


def without_mistakes(layers: list[LayerError], tolerance: Tolerance) -> tuple[list[LayerError], list[str]]:
    """(the layers without those whose value was taken for another, their names): what is wrong there is right behind it."""
    kept: list[LayerError] = []
    right = False
    for layer in reversed(layers):
        alone = bool(layer.fault) and not layer.flips and layer.experts <= tolerance.experts
        if not (right and alone):
            kept.insert(0, layer)
        right = right or not layer.fault
    return kept, [layer.layer for layer in layers if layer not in kept]
