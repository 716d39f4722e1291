"""Merging: fine-tuned models of one architecture become the experts of a mixture (branch-train-mix, Sukhbaatar et al. 2024).

The gates are those of mergekit (a router row is what an expert's prompts look like at that layer, or as embeddings), and
the domain embeddings of Nexus (Gritsch et al. 2024) without the projection, which has to be trained.
Dimension letters: T tokens, H hidden, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mocomp.errors import Usage
from mocomp.fill import Filled
from mocomp.fill.routing import Rows, router, tried
from mocomp.fill.slices import bank
from mocomp.ir.specs import spell
from mocomp.plans.blocks import Block
from mocomp.plans.plan import MixturePlan
from mocomp.weights import recipes


@dataclass(frozen=True)
class Merge:
    """A mixture in place of a base model's block, whose experts are the blocks there of other models.

    `alike` says that those models are the base model itself, so that the function is its own.
    """

    groups: tuple[tuple[str, int], ...]
    reach: tuple[tuple[str, ...], ...]
    k: int
    router: str
    rows: Rows
    alike: bool = False

    def __call__(self, block: Block, experts: Mapping[str, list[Block]]) -> Filled:
        """`experts` holds the blocks of each group."""
        count = sum(count for _, count in self.groups)
        for group, own in self.groups:
            if not 1 <= self.k <= own:
                raise Usage(f"--top-k {self.k}, and {'there are' if group == 'all' else f'group {group} has'} {own} experts")
        routing = router(self.router, self.k, count, len(self.groups) > 1)
        if not routing.fixed:
            raise Usage(f"router {self.router} gives a token any number of experts, and a merge has no router of inference")
        biased, total = tried(routing, count)
        rows = torch.cat([self.rows(block, group, own) for group, own in self.groups])
        weights = bank([expert.dense for group, _ in self.groups for expert in experts[group]])
        weights |= {"router.weight": recipes.literal(rows)}
        if biased:
            weights["router.correction"] = recipes.literal(torch.zeros(count))
        plan = MixturePlan(
            block.enter,
            "dense",
            block.dense.hidden,
            block.dense.width,
            self.groups,
            self.reach,
            spell(routing),
            spell(block.expert),
            leave=block.leave,
            in_bias=block.dense.b_in is not None,
            out_bias=block.dense.b_out is not None,
            correction=biased,
        )
        whole = total is not None and abs(total - 1) < 1e-4
        if not self.alike:
            return Filled(plan, weights, "experts are of other checkpoints")
        return Filled(plan, weights, "" if whole else f"the weights of {self.router} do not sum to 1")


def hidden_gate(seen: Mapping[str, list[Mapping[str, torch.Tensor]]]) -> Rows:
    """The mean of what an expert's prompts are in the base model where they enter the block, of unit length.

    `seen` holds, per group and expert, the mean x [H] by the name of the block. mergekit takes the state between layers;
    here it is taken behind the norm, since that is what the router's row is multiplied by.
    """

    def rows(block: Block, group: str, count: int) -> torch.Tensor:
        return F.normalize(torch.stack([x[block.enter] for x in seen[group]]), dim=-1)

    return rows


def embedding_gate(embedded: Mapping[str, list[torch.Tensor]], scale: float = 1.0) -> Rows:
    """The mean embedding of an expert's prompts, of length `scale`, the same in all layers.

    `embedded` holds, per group and expert, the embeddings [T, H] of its prompts. At scale 1 it is mergekit's cheap_embed. Nexus
    projects an embedding of the domain by a trained network; with nothing trained that is cheap_embed again but for the
    scale, and with one expert for a token it is no different at all. Its scale is H^-0.5, at which logits are near the
    cosine of token and domain, so that a token's experts begin with much the same weight and training can move them.
    """
    means = {group: scale * F.normalize(torch.stack([x.mean(0) for x in given]), dim=-1) for group, given in embedded.items()}
    return lambda block, group, count: means[group]
