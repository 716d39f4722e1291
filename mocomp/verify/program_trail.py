"""The trail of a program: its graph run node by node, with what its layers give kept on the way."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.ir.specs import parse
from mocomp.targets import Arrays
from mocomp.verify.choices import Choice, choice_of, scores_of
from mocomp.verify.measures import relative_error
from mocomp.verify.parity import run_case
from mocomp.verify.trail import BEFORE, Call, Trail
from mocomp.weights.recipes import Reader, Recipe

aten = torch.ops.aten
BANK: dict[Any, int] = {MOCOMP.experts.default: 3, MOCOMP.mixture.default: 3, MOCOMP.quantized_mixture.default: 2}
EXPERT: dict[Any, int] = {MOCOMP.experts.default: 7, MOCOMP.mixture.default: 8, MOCOMP.quantized_mixture.default: 7}
ROUTER: dict[Any, int] = {MOCOMP.mixture.default: 7, MOCOMP.quantized_mixture.default: 6}
"""Where an op's weights begin among its arguments, and where it says of which kind its experts and its router are."""


class Values:
    """The tensors of a program's weights, each evaluated once; those that no weight of the program is any more are let go."""

    def __init__(self, read: Reader):
        self.read, self.known = read, {}

    def of(self, program: Program) -> dict[str, Tensor]:
        """By name, for the weights that some node reads."""
        needed: dict[str, Recipe] = {name: program.recipes[name] for node, name in program.weights() if node.users}
        self.known = {r: self.known[r] for r in needed.values() if r in self.known}
        for recipe in needed.values():
            if recipe not in self.known:
                self.known[recipe] = recipe.evaluate(self.read)
        return {name: self.known[recipe] for name, recipe in needed.items()}


class Failed(Exception):
    """The program cannot be run beyond `node`, of `modules`."""

    def __init__(self, node: fx.Node, reason: str):
        super().__init__(reason)
        self.node, self.reason, self.modules = node, reason, modules_of(node)


@dataclass
class Places:
    """Where a program computes what a trail holds: the nodes of layers, of the scores [T, E] by which each mixture's experts
    are chosen (with K), and of the ops that run them."""

    layers: dict[str, fx.Node]
    scores: dict[str, tuple[fx.Node, int]]
    ops: dict[str, fx.Node]


@dataclass
class Followed:
    """What a program did: its calls for each case, and the error of each mixture's experts alone where it has an op for it."""

    calls: list[list[Call]]
    experts: dict[str, float] = field(default_factory=dict)


def follow_program(program: Program, weights: dict[str, Tensor], trail: Trail, interface: Any) -> Followed:
    """The program on the cases of a trail. Raises Failed at a node that cannot be run."""
    runner, followed = _Runner(program, weights, trail), Followed([])
    for ask in trail.asked:
        runner.calls = []
        run_case(runner.run_arrays, interface, ask.case, ask.given)
        followed.calls.append(runner.calls)
    followed.experts = runner.experts
    return followed


def places_of(program: Program, trail: Trail) -> Places:
    """Where the program computes what the trail holds; what cannot be told for sure is left out."""
    inside = {node: modules_of(node) for node in program.graph.nodes}
    layers = {}
    for name, (dims, width) in trail.shapes.items():
        like = [node for node in inside if node.op == "call_function" and _is_like(node, dims, width)]
        own = name.removeprefix(BEFORE)
        if name.startswith(BEFORE):
            found = [n for n in like if own not in inside[n] and any(own in inside[user] for user in n.users)]
            found = found if len(found) == 1 else []
        else:
            found = [n for n in like if own in inside[n] and any(own not in inside[user] for user in n.users)]
        if found:
            layers[name] = found[-1]
    ops = {scope(node): node for node in calls(program, *BANK)}
    scores = {name: found for name, experts in trail.mixtures.items() if (found := _scores(program, name, experts, ops))}
    return Places(layers, scores, ops)


def modules_of(node: fx.Node) -> set[str]:
    """The modules in whose forward a node was traced, all that are around it; none for the graph's output."""
    paths = [path.split(".") for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return {".".join(parts[:i]) for parts in paths for i in range(1, len(parts) + 1)}


def _is_like(node: fx.Node, dims: int, width: int) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() == dims and value.shape[-1] == width


def _scores(program: Program, mixture: str, experts: int, ops: dict[str, fx.Node]) -> tuple[fx.Node, int] | None:
    """What the K largest are taken of in a mixture's block, last of all where it is done more than once."""
    block = mixture.rpartition(".")[0]
    for node in reversed(calls(program, aten.topk.default, MOCOMP.route.default)):
        scores: Any = node.args[0]
        if not f"{scope(node)}.".startswith(f"{block}.") or scores.meta["val"].shape[-1] != experts:
            continue
        if node.target is MOCOMP.route.default:
            return node, parse("mocomp.routers", "Router", str(node.args[2])).k
        return scores, int(node.args[1])  # type: ignore[arg-type]
    op = ops.get(mixture)
    if op is None or op.target not in ROUTER:
        return None
    logits, spec = op.args[1], str(op.args[ROUTER[op.target]])
    return logits, parse("mocomp.routers", "Router", spec).k  # type: ignore[return-value]


class _Runner(fx.Interpreter):
    """A program on arrays by name, as artifacts are run; each run leaves a `Call`."""

    def __init__(self, program: Program, weights: dict[str, Tensor], trail: Trail):
        program.exported.graph_module.recompile()
        super().__init__(program.exported.graph_module)
        self.program, self.weights, self.trail = program, weights, trail
        self.places = places_of(program, trail)
        self.calls: list[Call] = []
        self.experts: dict[str, float] = {}
        self.wanted: dict[fx.Node, list[tuple[str, str, int]]] = {}
        for name, node in self.places.layers.items():
            self.wanted.setdefault(node, []).append(("layer", name, 0))
        for name, (node, k) in self.places.scores.items():
            self.wanted.setdefault(node, []).append(("scores", name, k))
        for name, node in self.places.ops.items():
            self.wanted.setdefault(node, []).append(("op", name, 0))

    def run_arrays(self, inputs: Arrays) -> Arrays:
        """The outputs by name."""
        self.calls.append(Call())
        given = {name: torch.from_numpy(array.copy()) for name, array in inputs.items()}
        weights = [self.weights.get(name) for _, name in self.program.weights()]
        with torch.no_grad():
            results = self.run(*weights, *(given[name] for name in self.program.inputs))
        outputs = {name: _array(value) for name, value in zip(self.program.outputs, results, strict=True)}
        self.calls[-1].outputs = outputs
        return outputs

    def run_node(self, n: fx.Node) -> Any:
        """As the interpreter does; what is wanted of the node is kept."""
        try:
            value = super().run_node(n)
            for kind, name, k in self.wanted.get(n, ()):
                getattr(self, f"_keep_{kind}")(n, value, name, k)
        except Exception as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
            raise Failed(n, first) from error
        return value

    def _keep_layer(self, node: fx.Node, value: Tensor, name: str, k: int) -> None:
        self.calls[-1].layers[name] = _array(value)

    def _keep_scores(self, node: fx.Node, value: Any, name: str, k: int) -> None:
        if node.target is MOCOMP.route.default:
            logits, tensors, spec = self.fetch_args_kwargs_from_env(node)[0]
            value = scores_of(parse("mocomp.routers", "Router", spec), logits, tensors)
        self.calls[-1].chosen[name] = choice_of(_array(value), k)

    def _keep_op(self, node: fx.Node, value: Tensor, name: str, k: int) -> None:
        arguments = self.fetch_args_kwargs_from_env(node)[0]
        call, forced = self.calls[-1], self.trail.forced.get(name)
        call.x[name] = _array(arguments[0])
        if node.target is MOCOMP.experts.default:
            known = call.chosen.get(name)
            call.chosen[name] = Choice(_array(arguments[1]), None if known is None else known.gap)
        if forced is None or name in self.experts:
            return
        given = (torch.from_numpy(array) for array in (forced.x, forced.ids, forced.weights))
        y = MOCOMP.experts(*given, *_bank(node, arguments), arguments[EXPERT[node.target]])
        self.experts[name] = relative_error(_array(y), forced.y)


def _bank(node: fx.Node, arguments: Any) -> tuple[Tensor | None, ...]:
    """The weights (w_in, b_in, w_out, b_out) that an op is given, unpacked."""
    bank = arguments[BANK[node.target] : BANK[node.target] + 4]
    if node.target is not MOCOMP.quantized_mixture.default:
        return bank
    spec_in, spec_out = arguments[-2:]
    w_in = MOCOMP.dequantize(bank[0], spec_in, arguments[0].shape[-1])
    gated = parse("mocomp.experts", "Expert", arguments[EXPERT[node.target]]).gated
    return w_in, bank[1], MOCOMP.dequantize(bank[2], spec_out, w_in.shape[1] // (2 if gated else 1)), bank[3]


def _array(value: Tensor) -> np.ndarray:
    """A copy, since what comes later may write to the memory."""
    return value.detach().clone().numpy()
