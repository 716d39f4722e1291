"""Routing and experts as calls of model-local functions: a runtime inlines them, one that knows better may replace them.

`mocomp.Route` gives (ids [T, K] int64, weights [T, K], scores [T, E] by which the K were chosen) of (logits [T, E], tensors of
the router). `mocomp.Experts` gives y [T, H] of (x [T, H], ids, weights, w_in [E, F or 2F, H], b_in, w_out [E, H, F], b_out),
where a bias that there is none of is left out. Layers that are alike share a function; other ones are `Experts2`, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import onnx_ir as ir

from mocomp.errors import MocompError
from mocomp.ir.specs import parse
from mocomp.lowering.branches import DOMAIN, Turn, function, way
from mocomp.lowering.call_layer import INPUTS, CallLayer, inner_function
from mocomp.lowering.exported_function import Shape
from mocomp.lowering.placeholders import EXPERTS, ROUTE
from mocomp.lowering.route_function import route_function
from mocomp.routers import Router

COPIED_BYTES, SPARED_BYTES, GATHERED_TOKENS = 2 << 20, 128 << 10, 16
"""Weights are gathered for as many tokens as take no more bytes than the first, and the second for each expert: copying them is
quicker than a loop over the experts as long as that takes longer than the copies. No more tokens than the third in any case.
Measured (docs/decisions/0017), as is:"""
MOST_OF_THEM = 0.5
"""The share of the experts that a token has from which on all are computed for all tokens."""
EXPERT, LIMITS = "mocomp.expert", "mocomp.limits"
"""What stands at a function: the kind of expert, and the numbers of tokens beyond which another way runs."""


def to_functions(model: ir.Model, body: str, opset: int) -> None:
    """Replace each placeholder of a model by a call of a function; `body` is one of `deployment.BODIES`."""
    made = _Functions(model, opset)
    fixed = {node: _is_fixed(node) for node in model.graph if node.op_type == EXPERTS}
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        if node.op_type == ROUTE:
            _call(model, node, made.route(node))
        elif node.op_type == EXPERTS:
            layer = made.layer(node)
            _call(model, node, made.experts(layer, turns_of(layer, body, fixed[node])))


def turns_of(layer: CallLayer, body: str, fixed: bool = True) -> tuple[Turn, ...]:
    """The ways in which a mixture runs: all experts for all tokens where their number is not `fixed`, and a weight of 0 says
    "not chosen"."""
    if not fixed:
        return (Turn("dense"),)
    if body != "auto":
        return (Turn(body),)
    many = "dense" if layer.chosen > MOST_OF_THEM * layer.experts else "sorted"
    room = COPIED_BYTES + SPARED_BYTES * layer.experts
    few = min(GATHERED_TOKENS, room // way("gathered").bytes(layer, 1))
    return (Turn("gathered", few), Turn(many)) if few else (Turn(many),)


def mixture_calls(model: ir.Model) -> list[tuple[ir.Node, CallLayer]]:
    """The mixtures of a model, in their order."""
    return [(node, layer_of(model, node)) for node in model.graph if is_call(model, node)]


def is_call(model: ir.Model, node: ir.Node) -> bool:
    """Whether a node is a mixture that is called as a function of this file's."""
    return bool(_said(model, node))


def call_of(model: ir.Model, y: str) -> ir.Node:
    """The mixture whose result has that name."""
    return next(node for node in model.graph if node.outputs[0].name == y)


def layer_of(model: ir.Model, call: ir.Node) -> CallLayer:
    """What a mixture shares with others that may run the same way."""
    return _layer(call, _said(model, call)[EXPERT])


def bank_of(call: ir.Node) -> list[str]:
    """The names of the weights (of w_in, of w_out) of a mixture, packed or not."""
    names = []
    for i in (INPUTS.index("w_in"), INPUTS.index("w_out")):
        value = call.inputs[i]
        while value is not None and (node := value.producer()) is not None:
            value = node.inputs[0]
        assert value is not None
        names.append(str(value.name).removesuffix(".codes"))
    return names


def limits_of(model: ir.Model, call: ir.Node) -> tuple[int, ...]:
    """The numbers of tokens beyond which a mixture runs in another way than before."""
    return tuple(int(limit) for limit in _said(model, call)[LIMITS].split())


class _Functions:
    """The functions of a model, each made once."""

    def __init__(self, model: ir.Model, opset: int):
        self.model, self.opset = model, opset
        self.names: dict[Hashable, str] = {}
        self.counts: dict[str, int] = {}

    def route(self, node: ir.Node) -> str:
        spec = node.attributes["spec"].as_string()
        shapes = tuple(_shape(value) for value in node.inputs if value is not None)
        return self._named("Route", (spec, shapes), lambda name: route_function(spec, shapes, name, self.opset))

    def layer(self, node: ir.Node) -> CallLayer:
        spec = node.attributes["spec"].as_string()
        rows = _sizes(node.inputs[INPUTS.index("w_in")])[1]
        made = self._named("Inner", (spec, rows), lambda name: ir.from_proto(inner_function(spec, rows, name, self.opset)))
        return _layer(node, spec, made)

    def experts(self, layer: CallLayer, turns: tuple[Turn, ...]) -> str:
        return self._named("Experts", (layer, turns), lambda name: _experts(layer, turns, name, self.opset))

    def _named(self, word: str, key: Hashable, make: Callable[[str], ir.Function]) -> str:
        if (word, key) not in self.names:
            self.counts[word] = self.counts.get(word, 0) + 1
            number = self.counts[word]
            made = make(word if number == 1 else f"{word}{number}")
            self.model.functions[made.identifier()] = made
            self.model.opset_imports[DOMAIN] = 1
            self.names[word, key] = made.name
        return self.names[word, key]


def _experts(layer: CallLayer, turns: tuple[Turn, ...], name: str, opset: int) -> ir.Function:
    made = ir.from_proto(function(layer, turns, name, opset))
    limits = " ".join(str(turn.tokens) for turn in turns if turn.tokens)
    made.metadata_props.update({EXPERT: layer.expert, LIMITS: limits})
    return made


def _call(model: ir.Model, node: ir.Node, name: str) -> None:
    """A call of that function in the place of a placeholder."""
    call = ir.Node(DOMAIN, name, node.inputs, num_outputs=len(node.outputs), name=node.name)
    for old, new in zip(node.outputs, call.outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
    model.graph.insert_before(node, call)
    for old, new in zip(node.outputs, call.outputs, strict=True):
        old.name = None
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


def _layer(node: ir.Node, spec: str, inner: str = "Inner") -> CallLayer:
    given = tuple(word if value is not None else "" for word, value in zip(INPUTS, _padded(node), strict=True))
    weights = {word: value for word, value in zip(INPUTS[3:], _padded(node)[3:], strict=True) if value is not None}
    shapes = {word: tuple(_sizes(value)) for word, value in weights.items()}
    experts, hidden, width = shapes["w_out"]
    return CallLayer(
        experts=experts,
        chosen=_sizes(node.inputs[1])[-1],
        hidden=hidden,
        width=width,
        expert=spec,
        inputs=given,
        shapes=tuple(shapes.items()),
        types=tuple((word, "float") for word in weights),
        inner=inner,
    )


def _said(model: ir.Model, node: ir.Node) -> dict[str, str]:
    """What stands at the function that a node calls, if it is a mixture's."""
    made = model.functions.get(node.op_identifier())
    return dict(made.metadata_props) if made is not None and EXPERT in made.metadata_props else {}


def _is_fixed(node: ir.Node) -> bool:
    """Whether every token has K experts, as far as is known. By the ids: weights may have been scaled since."""
    ids = node.inputs[1]
    route = ids.producer() if ids is not None else None
    if route is None or route.op_type != ROUTE:
        return True
    router: Router = parse("mocomp.routers", "Router", route.attributes["spec"].as_string())
    return router.fixed


def _padded(node: ir.Node) -> list[ir.Value | None]:
    """The inputs of a call, where those left out at the end may be missing."""
    return [*node.inputs, *[None] * (len(INPUTS) - len(node.inputs))]


def _shape(value: ir.Value) -> Shape:
    assert value.shape is not None
    return tuple(size if isinstance(size, int) else None for size in value.shape)


def _sizes(value: ir.Value | None) -> list[int]:
    """The sizes of a weight, or of ids: [-1, K]."""
    if value is None or value.shape is None:
        raise MocompError("a mixture of unknown size", where="lowering")
    return [size if isinstance(size, int) else -1 for size in value.shape]
