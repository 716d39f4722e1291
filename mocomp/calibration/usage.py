"""Which experts the tokens of some data go to, layer by layer and modality by modality.

Dimension letters: T tokens, H hidden, E experts, K chosen, M modalities, R experts that a modality can reach.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from mocomp import terminal
from mocomp.calibration.capture import Routing, outputs_of, watched
from mocomp.calibration.data import Data, modality_of
from mocomp.calibration.sample import Sample, Seen
from mocomp.calibration.steps import Steps, spelled
from mocomp.nn.mixture import TokenModality
from mocomp.plans.modality import IDS, Modality
from mocomp.report.usage import Concentration, LayerUsage
from mocomp.verify.measures import distribution, relative_error
from mocomp.verify.reference import Reference

SAMPLE = 512
"""Tokens that are kept of each layer, to run its experts on."""
ALL = "all"
"""What the one modality of a model is called that knows none."""
POOLS = ("text", "image")
"""Whose the pools are of a block that has several, in their order (`models/modality_blocks.py`)."""


@dataclass
class Counted:
    """What the router of a mixture did: K, tokens [M, E] int64, weight [M, E] float64, and a sample of its tokens.

    `steps` [E', E] int64 are from the experts of the mixture `after` to those that the same tokens chose here, for each pair of
    a token's choices; none for the first mixture, and where the tokens of two are not the same.
    """

    chosen: int
    tokens: torch.Tensor
    weight: torch.Tensor
    sample: Sample
    after: str = ""
    steps: torch.Tensor | None = None

    @property
    def seen(self) -> Seen:
        """The sample. Raises AssertionError where no token came."""
        seen = self.sample.seen
        assert seen is not None, "no token came to the mixture"
        return seen

    @property
    def dead(self) -> list[int]:
        """The experts that no token chose."""
        return (self.tokens.sum(0) == 0).nonzero().flatten().tolist()

    @property
    def share(self) -> torch.Tensor:
        """[M, E]: the share of each modality's weight that an expert is given, 0 of a modality without tokens."""
        return self.weight / self.weight.sum(1, keepdim=True).clamp(min=1e-30)


def modality_names(reference: Reference, modality: Modality | None) -> list[str]:
    """What the rows of counts are of."""
    if modality is not None:
        return list(modality.names)
    return list(POOLS) if any(len(stack) > 1 for stack in reference.mixtures.values()) else [ALL]


def count(reference: Reference, data: Data, modality: Modality | None = None, seed: int = 0) -> dict[str, Counted]:
    """Run the model over the data and count what each of its mixtures does, by the name of the mixture."""
    context, names = TokenModality(modality), modality_names(reference, modality)
    counts = {name: _nothing(len(names), experts, seed) for name, experts in reference.experts.items()}
    steps = Steps(reference.experts)

    def add(name: str, call: Routing) -> None:
        mine, experts = counts[name], reference.experts[name]
        owner = _owners(name, call, context, modality)
        # a router of any number of experts names them all, and says by a weight of 0 which are not chosen
        chosen = call.weights != 0 if call.ids.shape[1] == experts else torch.ones_like(call.ids, dtype=torch.bool)
        place = (owner[:, None] * experts + call.ids)[chosen]
        mine.chosen = call.ids.shape[1]
        mine.tokens.view(-1).index_add_(0, place, torch.ones_like(place))
        mine.weight.view(-1).index_add_(0, place, call.weights[chosen].double())
        mine.sample.add(call.x.float(), owner)
        if len(reference.mixtures[name]) == 1:  # of several pools, each is called with some of the tokens
            steps.add(name, call.ids, chosen)

    with terminal.progress("usage", len(data.rows), "rows") as advance:
        for row in watched(reference, data, add):
            context.ids = modality_of(row, modality)
            steps.begin()
            advance(1)
    for name, mine in counts.items():
        mine.after, mine.steps = steps.into(name)
    return counts


def _nothing(modalities: int, experts: int, seed: int) -> Counted:
    tokens, weight = (torch.zeros(modalities, experts, dtype=dtype) for dtype in (torch.int64, torch.float64))
    return Counted(0, tokens, weight, Sample(SAMPLE, seed))


def _owners(name: str, call: Routing, context: TokenModality, modality: Modality | None) -> torch.Tensor:
    """The modality [T] of each token that experts are called with."""
    if modality is None:
        return torch.full((len(call.x),), call.pool)
    if not modality.per_token:
        return torch.full((len(call.x),), modality.names.index(modality.of_layer(name)))
    return context.of(call.x[None])


def reach_of_pools(reference: Reference, name: str) -> torch.Tensor | None:
    """[M, E] bool: which experts each modality reaches in a block with a pool for each; None where there is one."""
    sizes = [experts.num_experts for experts in reference.mixtures[name]]
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return None if len(sizes) == 1 else owner == torch.arange(len(sizes))[:, None]


def layer_usage(name: str, counted: Counted, modalities: list[str], reach: torch.Tensor | None = None) -> LayerUsage:
    """What a report says of one mixture; `reach` [M, E] bool where a modality does not reach all of its experts."""
    experts, share = counted.tokens.shape[1], counted.share
    can = torch.ones_like(counted.tokens, dtype=torch.bool) if reach is None else reach
    spread = {m: concentration(share[i][can[i]], counted.chosen) for i, m in enumerate(modalities)}
    tokens = {m: counted.tokens[i].tolist() for i, m in enumerate(modalities)}
    shares = {m: share[i].tolist() for i, m in enumerate(modalities)}
    return LayerUsage(
        name, experts, counted.chosen, tokens, shares, counted.dead, spread, after=counted.after, steps=spelled(counted.steps)
    )


def concentration(share: torch.Tensor, k: int) -> Concentration:
    """Of the shares [R] of all weight; all 0 where there was none."""
    if not share.any() or len(share) == 1:
        return Concentration(0.0, 0.0, float(share.sum()))
    ordered = share.sort().values
    ranks = torch.arange(1, len(share) + 1, dtype=share.dtype)
    gini = float((2 * ranks - len(share) - 1) @ ordered / (len(share) * ordered.sum()))
    entropy = float(-torch.xlogy(share, share).sum() / math.log(len(share)))
    return Concentration(entropy, gini, float(ordered[-k:].sum()))


def tokens_of(counts: dict[str, Counted]) -> int:
    """How many tokens the model was run on: those of the mixture that saw most."""
    return max(counted.sample.added for counted in counts.values())


@dataclass
class Moved:
    """How far a model is from another on the same data: the largest relative error of any output, the mean KL of its
    next-token distribution (None without one), and how many tokens were compared, or images where it reads no tokens."""

    error: float = 0.0
    kl: float | None = None
    tokens: int = 0
    unit: str = "tokens"


def moved(before: Reference, after: Reference, data: Data) -> Moved:
    """Run both over the data, row by row."""
    found, kls = Moved(unit="tokens" if any(IDS in row for row in data.rows) else "images"), []
    with terminal.progress("proof", len(data.rows), "rows") as advance:
        for a, b, tokens in _both(before, after, data):
            found.error = max([found.error, *(relative_error(b[name], a[name]) for name in a)])
            found.tokens += tokens
            if "logits" in a and a["logits"].ndim == 3:
                kls.append((tokens, distribution(b["logits"], a["logits"])[1]))
            advance(1)
    found.kl = sum(n * kl for n, kl in kls) / sum(n for n, _ in kls) if kls else None
    return found


Outputs = dict[str, np.ndarray]


def _both(before: Reference, after: Reference, data: Data) -> Iterator[tuple[Outputs, Outputs, int]]:
    """(outputs of one, outputs of the other, tokens) of each row."""
    for row in data.rows:
        one, other = ({k: v.float().numpy() for k, v in outputs_of(ref, row).items()} for ref in (before, after))
        yield one, other, row[IDS].numel() if IDS in row else 1
