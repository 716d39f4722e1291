"""The graphs that TensorRT builds engines of: standard operators, types as they are to be computed in, profiles written in.

Each graph says in its own metadata what it is to be built for, so that an artifact needs nothing beside its files.
Dimension letters: T tokens, E experts, K chosen per token, H hidden.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from mocomp.deployment import Deployment
from mocomp.errors import BadInput, Usage
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.lowering import blocked_layout, portable, standard_ops, tensorrt_moe, unfused
from mocomp.lowering.engine import Part
from mocomp.lowering.named_mixtures import Named, name_mixtures
from mocomp.lowering.onnx_graph import weights_of
from mocomp.lowering.onnx_session import MODEL, load
from mocomp.lowering.precision import narrow
from mocomp.lowering.profiles import SEQUENCE, Profile, dims_of, profiles_for
from mocomp.weights.equality import same
from mocomp.weights.recipes import Recipe

PLAN, DECODE, DECODE_PLAN = "model.plan", "decode.onnx", "decode.plan"
PROFILES, POSITIONS, TOKENS = "mocomp.profiles", "mocomp.positions", "mocomp.tokens"
"""What a graph says of itself: the profiles; the positions of the model, 0 where they have no end; the most tokens of a call
where it was made for few, and would read more weights than there are for more."""


@dataclass
class Lowered:
    """A graph, what it is for, the recipes of its weights, its mixtures, and how these are computed; `unused` says of layers
    why TensorRT's own mixture is not used."""

    part: Part
    model: ir.Model
    weights: dict[str, Recipe]
    mixtures: list[Named]
    body: str
    unused: dict[str, str]


def parts_of(deployment: Deployment, program: Program, longest: int) -> list[Part]:
    """The engines to make, and for which profiles. Raises Usage for profiles that the model has not, or that are of one kind
    where two engines are asked for."""
    names = [name for value in program.inputs for name in program.axes.get(value, {}).values()]
    profiles = profiles_for(deployment.profiles, names, longest)
    if deployment.engines == "one":
        return [Part(MODEL, PLAN, tuple(profiles))]
    few = [profile for profile in profiles if profile.most(SEQUENCE) == 1]
    many = [profile for profile in profiles if profile not in few]
    if not few or not many or SEQUENCE not in names:
        raise Usage(
            f"--engines two, and the profiles are {' and '.join(p.text for p in profiles)}",
            fix="One engine is for profiles of one token, the other for those of more: give both, or leave --engines out.",
        )
    return [Part(MODEL, PLAN, tuple(many)), Part(DECODE, DECODE_PLAN, tuple(few))]


def body_for(part: Part, mixture: str, program: Program) -> str:
    """How the mixtures of a graph are computed: as asked, or so that no more weights are read than there are.

    TensorRT plans memory for the largest sizes of a profile, whichever branch of an If is taken; so the body is chosen for
    the profiles, and not when the engine runs.
    """
    if mixture != "auto":
        return mixture
    tokens = max(profile.tokens for profile in part.profiles)
    sizes = _sizes(program)
    return "gathered" if sizes and all(tokens * chosen <= experts for chosen, experts in sizes) else "dense"


def _sizes(program: Program) -> list[tuple[int, int]]:
    """(K, E) of each mixture."""
    return [(node.args[1].meta["val"].shape[-1], node.args[3].meta["val"].shape[0]) for node in _mixtures(program)]


def merged(graphs: Sequence[Lowered]) -> dict[str, Recipe]:
    """The weights of all graphs by name, which are written once. A name that means two things is a fault of ours."""
    weights: dict[str, Recipe] = {}
    for name, recipe in (item for lowered in graphs for item in lowered.weights.items()):
        if not same(weights.setdefault(name, recipe), recipe):
            raise AssertionError(f"{name} is one weight in one graph, and another in the other")
    return weights


def lower(program: Program, part: Part, deployment: Deployment, layer: bool, longest: int = 0) -> Lowered:
    """The graph of one engine, its weights without data; with `layer`, mixtures are TensorRT's own where it has them.
    `longest` are the positions of the model."""
    body = body_for(part, deployment.mixture, program)
    model, packed = standard_ops.to_standard(program, deployment.opset, body), unfused.packed(program)
    mixtures = name_mixtures(model, [scope(node) for node in _mixtures(program)], unfused.banks(program))
    weights = blocked_layout.arrange(model, weights_of(model, program), packed)
    if deployment.dtype != "float32":
        weights = narrow(model, weights, deployment.dtype, program.parameters())
    unused = _own_layers(model, weights) if layer else {}
    _say_axes(model)
    model.metadata_props[PROFILES] = ";".join(profile.text for profile in part.profiles)
    model.metadata_props[POSITIONS] = str(longest)
    if body == "gathered" and deployment.mixture == "auto":
        model.metadata_props[TOKENS] = str(min(experts // chosen for chosen, experts in _sizes(program)))
    return Lowered(part, model, weights, mixtures, body, unused)


def parts_in(directory: Path, profiles: Sequence[str] = ()) -> list[Part]:
    """The engines of an artifact, for the profiles that its graphs were made for, or for others.

    Raises BadInput for what is no artifact, Usage for profiles that it cannot have.
    """
    files = [(MODEL, PLAN)] + ([(DECODE, DECODE_PLAN)] if (directory / DECODE).exists() else [])
    return [Part(graph, plan, _profiles_in(load(directory, graph), profiles, len(files) > 1, graph)) for graph, plan in files]


def _profiles_in(model: ir.Model, texts: Sequence[str], two: bool, graph: str) -> tuple[Profile, ...]:
    if PROFILES not in model.metadata_props:
        raise BadInput("it does not say which sizes it is for", where=graph, fix="Convert again, with --target tensorrt.")
    names = [dim for dims in dims_of(model.graph.inputs).values() for dim in dims if isinstance(dim, str)]
    if not texts:
        return _recorded(model, names, graph)
    asked = profiles_for(texts, names, _number(model, POSITIONS))
    own = tuple(profile for profile in asked if not two or (profile.most(SEQUENCE) == 1) == (graph == DECODE))
    if not own:
        raise Usage(f"no --profile is for {graph}", fix="One engine is for profiles of one token, the other for more.")
    limit = _number(model, TOKENS)
    if limit and (many := [profile for profile in own if profile.tokens > limit]):
        raise Usage(
            f"--profile {many[0].text!r}: {graph} gathers the weights of each token, for {limit} tokens at most",
            fix="Convert again with that --profile.",
        )
    return own


def _recorded(model: ir.Model, names: Sequence[str], graph: str) -> tuple[Profile, ...]:
    try:
        return tuple(profiles_for(model.metadata_props[PROFILES].split(";"), names))
    except Usage as error:
        raise BadInput(f"{PROFILES} in its metadata: {error.what}", where=graph, fix="Convert again.") from error


def _number(model: ir.Model, name: str) -> int:
    """A number in the metadata; 0 where nothing is said."""
    text = model.metadata_props.get(name, "0")
    if not re.fullmatch("[0-9]{1,9}", text):
        raise BadInput(f"{name} in its metadata is no number: {text[:40]!r}", fix="Convert again.")
    return int(text)


def _mixtures(program: Program) -> list:
    return calls(program, MOCOMP.experts.default)


def _own_layers(model: ir.Model, weights: dict[str, Recipe]) -> dict[str, str]:
    """Mixtures as TRT_MoE nodes; of each that cannot be one, why."""
    unused = {}
    for call, layer in portable.mixture_calls(model):
        packed = any(name not in weights for name in portable.bank_of(call))
        biased = layer.has("b_in"), layer.has("b_out")
        if (reason := tensorrt_moe.obstacle(layer.kind, biased, packed)) is not None:
            unused[str(call.outputs[0].name).removesuffix("/y")] = reason
        else:
            tensorrt_moe.replace(model, call, weights)
    _forget_unused(model)
    return unused


def _say_axes(model: ir.Model) -> None:
    """Squeeze with its axes, which parsers before 11.5 want to be told."""
    for node in [node for node in model.graph.all_nodes() if node.op_type == "Squeeze" and len(node.inputs) == 1]:
        given, graph = node.inputs[0], node.graph
        if given is None or given.shape is None or graph is None:
            continue
        axes = ir.node("Constant", [], {"value_ints": [i for i, size in enumerate(given.shape) if size == 1]})
        graph.insert_before(node, axes)
        node.resize_inputs(2)
        node.replace_input_with(1, axes.outputs[0])


def _forget_unused(model: ir.Model) -> None:
    """Functions that nothing calls any more, and those that only these called."""
    while True:
        called = {node.op_identifier() for graph in (model.graph, *model.functions.values()) for node in graph.all_nodes()}
        dead = [name for name in model.functions if name not in called]
        for name in dead:
            del model.functions[name]
        if not dead:
            return
