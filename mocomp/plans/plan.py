"""Plans: what was inserted into a model, as data that travels in the config.json of its checkpoint.

Dimension letters: H hidden, F expert width, E experts of all groups, M modalities, A width of an auxiliary router.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch

from mocomp.errors import BadInput
from mocomp.experts import Expert
from mocomp.ir.specs import parse
from mocomp.plans.modality import Modality
from mocomp.routers import Router

FORMAT = 1
LARGEST = 1 << 24
"""A plan has no size above this: the table of its experts is made when it is read."""
MODEL_TYPE = "mocomp"
"""The model_type of a checkpoint of ours; the config of the model that it was made from is under `base`."""
HIDDEN = -1e4
"""Added to the attention scores of tokens that went past a layer: their share is exactly 0 beside any other token, and a
token that has no other to attend to, which is one that goes past as well, still has a defined result that nobody reads."""


@dataclass(frozen=True)
class MixturePlan:
    """One mixture. It stands in place of module `enter`, and the modules `leave` after it pass on what they are given.

    `replaces` is `dense` (a feed-forward block; the mixture takes x [..., H]) or `experts` (the experts of a mixture that
    the model has; their caller's choice is ignored). `groups` are (name, number of experts) in the order of the bank.
    `reach` holds, per modality, the groups whose experts its tokens may be routed to. `scoring` is `linear`
    (logits = x W^T + b, W [E, H]) or `neurons` (logits = |inner(x W^T)|, W holding a neuron of each expert; CMoE).
    `shared` is the width of an expert that every token goes through, 0 for none. With `auxiliary` A > 0 a causal
    router of that width takes over outside training (`inference` is its kind).
    """

    enter: str
    replaces: str
    hidden: int
    width: int
    groups: tuple[tuple[str, int], ...]
    reach: tuple[tuple[str, ...], ...]
    router: str
    expert: str
    leave: tuple[str, ...] = ()
    scoring: str = "linear"
    shared: int = 0
    in_bias: bool = False
    out_bias: bool = False
    router_bias: bool = False
    correction: bool = False
    auxiliary: int = 0
    inference: str = ""

    @property
    def experts(self) -> int:
        return sum(count for _, count in self.groups)

    @property
    def kind(self) -> Expert:
        return parse("mocomp.experts", "Expert", self.expert)

    @property
    def routing(self) -> Router:
        """The routing of training, and of inference where there is no other."""
        return parse("mocomp.routers", "Router", self.router)

    @property
    def routing_of_inference(self) -> Router:
        return parse("mocomp.routers", "Router", self.inference or self.router)

    @property
    def inner_width(self) -> int:
        """Rows of an expert's first product: F, or 2F with a gate."""
        return self.width * (2 if self.kind.gated else 1)

    def allowed(self) -> torch.Tensor | None:
        """[M, E] bool: which experts tokens of a modality may be routed to; None when all may go everywhere."""
        owners = [name for name, count in self.groups for _ in range(count)]
        table = torch.tensor([[owner in groups for owner in owners] for groups in self.reach])
        return None if table.all() else table

    def check(self, modality: Modality | None) -> None:
        """Raises ValueError, or an error of what it names, for a mixture that cannot be run."""
        names = (self.enter, *self.leave, *(name for name, _ in self.groups))
        if not all(isinstance(name, str) and name.isprintable() and name for name in names):
            raise ValueError("a name that is none")
        if not all(
            type(size) is int and 0 < size <= LARGEST for size in (self.hidden, self.width, *dict(self.groups).values())
        ):
            raise ValueError("a size that is not above 0, or absurd")
        counts = dict(self.groups)
        if self.replaces not in ("dense", "experts") or self.scoring not in ("linear", "neurons"):
            raise ValueError(f"it replaces {self.replaces} with {self.scoring} scoring")
        if len(counts) < len(self.groups) or not self.reach or not all(set(row) <= set(counts) for row in self.reach):
            raise ValueError(f"tokens reach {self.reach} of the groups {self.groups}")
        for routing in (self.routing, self.routing_of_inference):
            least = min(sum(counts[name] for name in row) for row in self.reach) if routing.fixed else self.experts
            if not 1 <= routing.k <= least or not (routing.fixed or routing.k == self.experts):
                raise ValueError(f"{routing.k} experts of {least}")
        if self.allowed() is not None and (
            modality is None or not modality.per_token or len(modality.names) != len(self.reach)
        ):
            raise ValueError("nothing tells the modality of tokens")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight of the mixture by its name under `enter`, with its shape."""
        e, h, f, i = self.experts, self.hidden, self.width, self.inner_width
        gate = 2 if self.kind.gated else 1
        shapes: dict[str, tuple[int, ...]] = {
            "router.weight": (e * gate if self.scoring == "neurons" else e, h),
            "experts.w_in": (e, i, h),
            "experts.w_out": (e, h, f),
        }
        optional = {
            "router.bias": ((e * gate if self.scoring == "neurons" else e,), self.router_bias),
            "router.correction": ((e,), self.correction),
            "router.aux_in": ((self.auxiliary, h), self.auxiliary > 0),
            "router.aux_out": ((e, self.auxiliary), self.auxiliary > 0),
            "experts.b_in": ((e, i), self.in_bias),
            "experts.b_out": ((e, h), self.out_bias),
            "shared.w_in": ((gate * self.shared, h), self.shared > 0),
            "shared.w_out": ((h, self.shared), self.shared > 0),
            "shared.b_in": ((gate * self.shared,), self.shared > 0 and self.in_bias),
            "shared.b_out": ((h,), self.shared > 0 and self.out_bias),
        }
        return shapes | {name: shape for name, (shape, there) in optional.items() if there}


@dataclass(frozen=True)
class DepthPlan:
    """Mixture-of-depths around decoder layer `layer` (Raposo 2024): a token goes through it or past it.

    In training the `capacity` share of a sequence's tokens with the highest scores goes through. Outside training a
    token goes through when sigmoid of the auxiliary router (of width A, when `auxiliary` > 0) or else of the score
    itself is above 0.5, which no later token can change.
    """

    layer: str
    hidden: int
    capacity: float
    auxiliary: int = 0

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every weight by its name under `layer`, with its shape."""
        shapes: dict[str, tuple[int, ...]] = {"depth.router": (1, self.hidden)}
        if self.auxiliary:
            shapes |= {"depth.aux_in": (self.auxiliary, self.hidden), "depth.aux_out": (1, self.auxiliary)}
        return shapes


@dataclass(frozen=True)
class ModelPlan:
    """All that was inserted into a model. `modality` is None when there is one group only."""

    modality: Modality | None = None
    mixtures: tuple[MixturePlan, ...] = ()
    depths: tuple[DepthPlan, ...] = field(default=())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every inserted weight by its name in the checkpoint, with its shape."""
        mixtures = {f"{m.enter}.{name}": shape for m in self.mixtures for name, shape in m.shapes().items()}
        return mixtures | {f"{d.layer}.{name}": shape for d in self.depths for name, shape in d.shapes().items()}

    def check(self) -> None:
        """Raises ValueError, or an error of what a plan names, where its parts contradict each other."""
        if self.modality is not None:
            self.modality.check()
        for mixture in self.mixtures:
            mixture.check(self.modality)
        sizes = [size for shape in self.shapes().values() for size in shape]
        if not all(type(size) is int and 0 < size <= 2 * LARGEST for size in sizes):
            raise ValueError("a size that is not above 0, or absurd")

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT} | dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Any, where: str) -> ModelPlan:
        """What `to_json` gave. Raises BadInput for anything else."""
        try:
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']}, and this version reads {FORMAT}")
            modality = Modality(**_tuples(data["modality"])) if data["modality"] else None
            mixtures = tuple(MixturePlan(**_tuples(m)) for m in data["mixtures"])
            plan = cls(modality, mixtures, tuple(DepthPlan(**d) for d in data["depths"]))
            plan.check()
        except Exception as error:
            raise BadInput(
                f"no plan of inserted mixtures can be read from it: {type(error).__name__}: {error}",
                where=where,
                fix="The file was changed or is of another version of mocomp; make the checkpoint again.",
            ) from error
        return plan


def _tuples(value: Any) -> Any:
    """Lists, which JSON has, as tuples, which plans are made of."""
    if isinstance(value, list):
        return tuple(_tuples(item) for item in value)
    if isinstance(value, dict):
        return {name: _tuples(item) for name, item in value.items()}
    return value
