"""Carving: a dense block divided into experts, every neuron going to exactly one, so that all experts together are the block.

Which neurons belong together: any (LLaMA-MoE, Zhu et al. 2024, "independent random"), those with alike gate rows
(LLaMA-MoE, "independent clustering"), or those that are active for the same tokens, after those that are active most have
gone into an expert of all tokens (CMoE, Pei et al. 2025). Whatever the division, the router needs no training: the score
of an expert is the size of the activation of the one neuron that stands for it (CMoE).
Dimension letters: T tokens, H hidden, F width of the block, E experts with the shared ones, S shared experts.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mocomp.errors import Usage
from mocomp.fill import Filled
from mocomp.fill.activity import activations, markers
from mocomp.fill.clusters import kmeans, spread
from mocomp.fill.slices import bank, neurons, rounded, shared
from mocomp.ir.specs import spell
from mocomp.plans.blocks import Block
from mocomp.plans.plan import MixturePlan
from mocomp.routers.topk_uniform import TopKUniform
from mocomp.weights import recipes
from mocomp.weights.arithmetic import pick
from mocomp.weights.recipes import Reader, Recipe

ACTIVE = 0.1
"""Share of the neurons that count as active for a token, those with the largest values (published code: 10 neurons)."""
GROUP = "all"


@dataclass(frozen=True)
class Carve:
    """Fill a mixture with the neurons of a block, F / E in each expert; `shared` of the experts all tokens go through.

    Each token goes through `k` of the others, with weight 1; with all of them the function is the block's. Activity is
    measured on tokens x [T, H] that came to the block.
    """

    experts: int
    shared: int
    k: int
    method: str
    read: Reader
    seed: int = 0

    def __call__(self, block: Block, x: Tensor) -> Filled:
        width, dense = self.width(block), block.dense
        always, parts, chosen = self._divided(block, x)
        bias = 0.0 if self.shared else 1 / self.k
        weights = bank([neurons(block, part, bias) for part in parts]) | self._router(block, chosen)
        if self.shared:
            weights |= shared(neurons(block, always, 1.0))
        routed = len(parts)
        plan = MixturePlan(
            block.enter,
            "dense",
            dense.hidden,
            width,
            ((GROUP, routed),),
            ((GROUP,),),
            spell(TopKUniform(self.k)),
            spell(block.expert),
            leave=block.leave,
            scoring="neurons",
            shared=self.shared * width,
            in_bias=dense.b_in is not None,
            out_bias=dense.b_out is not None,
            router_bias=dense.b_in is not None,
        )
        if self.k < routed:
            return Filled(plan, weights, f"a token goes past {routed - self.k} of {routed} routed experts")
        return Filled(plan, weights, "" if self.shared else rounded(block, self.k))

    def width(self, block: Block) -> int:
        """Neurons of an expert. Raises Usage for numbers that do not fit."""
        whole = block.dense.width
        if self.experts < 1 or whole % self.experts:
            fits = ", ".join(str(e) for e in range(2, min(whole, 256) + 1) if whole % e == 0)
            raise Usage(f"--experts {self.experts} does not divide the width {whole} of {block.enter}", fix=f"These do: {fits}")
        if not 0 <= self.shared < self.experts:
            raise Usage(f"--shared {self.shared} of --experts {self.experts} leaves no expert to choose")
        if not 1 <= self.k <= self.experts - self.shared:
            raise Usage(f"--top-k {self.k}, and there are {self.experts - self.shared} experts besides the shared ones")
        return whole // self.experts

    def _divided(self, block: Block, x: Tensor) -> tuple[list[int], list[list[int]], list[int]]:
        """(neurons of the shared experts, those of each other expert, the one that stands for each of these)."""
        h = activations(block, x, self.read)
        active = markers(h, max(round(ACTIVE * h.shape[1]), 1)).T
        rates = active.mean(1)
        if self.method == "cmoe":
            always, parts = by_activity(active, rates, self.experts, self.shared)
        else:
            parts = sorted(self._parts(block), key=lambda part: -float(rates[part].mean()))  # shared are the most active
            always, parts = [i for part in parts[: self.shared] for i in part], parts[self.shared :]
        return always, parts, [representative(active, part) for part in parts]

    def _parts(self, block: Block) -> list[list[int]]:
        seed = random.Random(f"{self.seed}.{block.enter}").getrandbits(40)
        if self.method == "random":
            return at_random(block.dense.width, self.experts, seed)
        gate = recipes.slice_of(block.dense.w_in, 0, 0, block.dense.width).evaluate(self.read).float()
        return members(kmeans(gate, spread(gate, self.experts, seed), balanced=True)[0], self.experts)

    def _router(self, block: Block, chosen: list[int]) -> dict[str, Recipe]:
        """The neurons that stand for the experts: their gate rows, then their up rows."""
        rows = [*chosen, *(i + block.dense.width for i in chosen)] if block.expert.gated else chosen
        router = {"router.weight": pick(block.dense.w_in, 0, rows)}
        return router if block.dense.b_in is None else router | {"router.bias": pick(block.dense.b_in, 0, rows)}


def at_random(width: int, experts: int, seed: int) -> list[list[int]]:
    """Parts of one size in which any neurons may meet."""
    order = torch.randperm(width, generator=torch.Generator().manual_seed(seed))
    return [part.sort().values.tolist() for part in order.chunk(experts)]


def by_activity(active: Tensor, rates: Tensor, experts: int, always: int) -> tuple[list[int], list[list[int]]]:
    """active [F, T] -> (the neurons with the highest rates [F], the others by balanced k-means of their rows of `active`).

    The first centres are the neurons with the highest rates of those others, as in the published code.
    """
    order = rates.argsort(descending=True, stable=True)
    first = always * len(rates) // experts
    rest = order[first:].sort().values
    points, centres = active[rest], active[order[first : first + experts - always]]
    parts = members(kmeans(points, centres, balanced=True)[0], experts - always)
    return order[:first].sort().values.tolist(), [rest[part].tolist() for part in parts]


def members(owner: Tensor, parts: int) -> list[list[int]]:
    """The points of each cluster, given the cluster of each point."""
    return [(owner == k).nonzero()[:, 0].tolist() for k in range(parts)]


def representative(active: Tensor, part: list[int]) -> int:
    """The neuron of a part whose row of `active` [F, T] has the smallest angle to the mean of theirs.

    The published code takes the nearest in L1, which of rows of few ones is one with hardly any: a neuron that never speaks.
    """
    rows = active[part]
    return part[int((F.normalize(rows, dim=1) @ rows.mean(0)).argmax())]
