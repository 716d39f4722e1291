"""What a model is made of, from its config alone."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from mocomp.errors import BadInput
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.ir.specs import parse
from mocomp.models import canonical
from mocomp.models.modality_blocks import mixtures
from mocomp.models.source import Source, open_source
from mocomp.passes.clean import Clean
from mocomp.passes.fold_router_scale import FoldRouterScale
from mocomp.passes.fold_weights import FoldWeights
from mocomp.passes.fuse_routing import FuseRouting
from mocomp.plans.plan import MixturePlan, ModelPlan


@dataclass(frozen=True)
class MixtureRow:
    """Layers whose mixtures are alike: E, K, F, the kinds of router and expert, parameters of one of them."""

    layers: str
    count: int
    experts: int
    chosen: int
    width: int
    router: str
    expert: str
    parameters: int


@dataclass(frozen=True)
class Inspection:
    """Parameters in all, and active per token: without experts not chosen and without the table of embeddings."""

    model_class: str
    model_type: str
    kind: str
    layers: int
    parameters: int
    active: int
    bytes: dict[str, int]
    mixtures: list[MixtureRow]


def inspect(name: str, trust_remote_code: bool = False) -> Inspection:
    """Build SOURCE on the meta device and count; routers are read from a trace of its first layers."""
    from mocomp.models.huggingface import build

    source = open_source(name, trust_remote_code)
    kind, routers = _routers(source)
    model = build(source)
    plan = source.plan or ModelPlan()
    total = sum(p.numel() for p in {id(p): p for p in model.parameters()}.values()) + inserted(plan, model)
    stock = {name: stack for name, stack in mixtures(model).items() if name not in {m.enter for m in plan.mixtures}}
    found = [_row(name, stack, routers) for name, stack in stock.items()]
    rows = _grouped([*found, *(_planned(mixture) for mixture in plan.mixtures)])
    idle = sum(row.count * row.parameters * (row.experts - row.chosen) // row.experts for row in rows)
    in_experts = sum(row.count * row.parameters for row in rows)
    rest = 2 * (total - in_experts)
    sizes = {"float32": 4 * total, "bfloat16": 2 * total}
    if rows:
        sizes |= {"int8 experts": rest + in_experts, "int4 experts, block 32": rest + in_experts * 9 // 16}
    layers = getattr(source.config.get_text_config(), "num_hidden_layers", 0)
    active = total - idle - _embeddings(model)
    return Inspection(type(model).__name__, source.config.model_type, kind, layers, total, active, sizes, rows)


def _routers(source: Source) -> tuple[str, dict[str, tuple[str, int]]]:
    """(kind of model, {class-independent name of a mixture: (router, K)}), from the first layers alone.

    Layers of one model route alike, so a trace up to the first mixture tells; its cost does not grow with depth.
    """
    from mocomp.models.binding import bind_nothing
    from mocomp.models.huggingface import build, trace

    model = build(dataclasses.replace(source, config=_shallow(source, build(source))))
    traced = trace(model)
    traced.program.recipes |= bind_nothing(model)
    for step in (Clean(), FoldWeights(), FuseRouting(), FoldRouterScale()):
        step.apply(traced.program)
    found: dict[str, tuple[str, int]] = {}
    for node in calls(traced.program, MOCOMP.experts.default):
        weights = node.args[2].args[0] if node.args[2].args else node.args[2]
        route = weights if getattr(weights, "target", None) is MOCOMP.route.default else None
        router = parse("mocomp.routers", "Router", route.args[2]) if route is not None else None
        k = node.args[1].meta["val"].shape[1]
        found[_anonymous(scope(node))] = (router.name if router else "not recognised: stays in plain ops", k)
    return traced.interface.kind, found


def _shallow(source: Source, model: Any) -> Any:
    """The config with no more layers than it takes to see a mixture."""
    config = copy.deepcopy(source.config)
    text = config.get_text_config()
    names = list(mixtures(model))
    indices = [int(match) for match in re.findall(r"\.(\d+)\.", names[0])] if names else [0]
    depth = getattr(text, "num_hidden_layers", None)
    keep = indices[0] + 1
    if depth is None or keep >= depth:
        return config
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == depth:
            setattr(text, name, value[:keep])
    text.num_hidden_layers = keep
    return config


def _row(name: str, stack: list[Any], routers: dict[str, tuple[str, int]]) -> MixtureRow:
    """`stack`: the experts modules of one mixture; experts of unlike width count as the mean of all."""
    experts = sum(module.num_experts for module in stack)
    width = max(canonical.bank(module).w_out.shape[2] for module in stack)
    router, k = routers.get(_anonymous(name), ("unknown", 0))
    expert = parse("mocomp.experts", "Expert", stack[0].mocomp_spec)
    parameters = sum(p.numel() for module in stack for p in module.parameters())
    return MixtureRow(name, 1, experts, k, width, router, f"{expert.name} ({expert.activation})", parameters)


def _planned(plan: MixturePlan) -> MixtureRow:
    """A mixture that mocomp inserted, with its groups."""
    sizes = {name: math.prod(shape) for name, shape in plan.shapes().items()}
    groups = "" if len(plan.groups) == 1 else ": " + ", ".join(f"{name} {count}" for name, count in plan.groups)
    router = plan.routing_of_inference
    kind = f"{plan.kind.name} ({plan.kind.activation})"
    bank = sum(size for name, size in sizes.items() if name.startswith("experts."))
    return MixtureRow(f"{plan.enter}.experts", 1, plan.experts, router.k, plan.width, router.name + groups, kind, bank)


def inserted(plan: ModelPlan, model: Any) -> int:
    """How many parameters a plan adds, less those of the modules that it replaces. Raises BadInput for one that is absent."""
    gone = [name for m in plan.mixtures for name in (m.enter, *m.leave)]
    known = {name for name, _ in model.named_modules()}
    if absent := [name for name in gone if name not in known]:
        raise BadInput(f"{type(model).__name__} has no module {absent[0]}, which the plan in config.json names")
    replaced = sum(p.numel() for name in gone for p in model.get_submodule(name).parameters())
    return sum(math.prod(shape) for shape in plan.shapes().values()) - replaced


def _grouped(rows: list[MixtureRow]) -> list[MixtureRow]:
    groups: dict[Any, list[MixtureRow]] = {}
    for row in rows:
        groups.setdefault(dataclasses.replace(row, layers=""), []).append(row)
    return [
        dataclasses.replace(key, layers=_range([r.layers for r in members]), count=len(members))
        for key, members in groups.items()
    ]


def _range(names: list[str]) -> str:
    """`model.layers.0-47.mlp.experts` for names that differ in one number."""
    if len(names) == 1:
        return names[0]
    numbers = [int(re.findall(r"\.(\d+)\.", name)[0]) for name in names]
    return re.sub(r"\.\d+\.", f".{numbers[0]}-{numbers[-1]}.", names[0], count=1)


def _anonymous(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _embeddings(model: Any) -> int:
    """Parameters of the table of token embeddings, of which a token uses a row; 0 where the head uses all of it."""
    try:
        table, head = model.get_input_embeddings(), model.get_output_embeddings()
    except NotImplementedError:  # a model of two towers has no one table
        return 0
    weight = getattr(table, "weight", None)
    if weight is None or weight.dim() != 2 or (head is not None and head.weight is weight):
        return 0
    return weight.numel()
