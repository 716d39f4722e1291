"""What a mixture computes, on tokens that came to it, when some of its experts are away.

Dimension letters: T tokens, H hidden, E experts, K chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from mocomp.calibration.sample import Seen
from mocomp.fill.prune import pruned
from mocomp.nn.mixture import Mixture
from mocomp.plans.mixtures import Found
from mocomp.report.usage import Duplicates
from mocomp.weights import recipes
from mocomp.weights.recipes import Reader

LARGEST = 1 << 26
"""Numbers of the outputs of all experts that are kept at a time; of more, fewer tokens are looked at."""
FOR_DUPLICATES = 64
"""Tokens on which experts are compared in pairs."""


class Ablation:
    """A mixture on a sample of its tokens: every expert has run on each of them, so that any choice is a sum.

    The router chooses among those that stay as the pruned mixture's own does, softmax over fewer logits and all.
    """

    def __init__(self, found: Found, read: Reader, seen: Seen):
        tokens = max(LARGEST // (found.plan.experts * found.plan.hidden), 1)
        self.x = seen.x[:tokens]
        self.modality = None if seen.modality is None else seen.modality[:tokens]
        self.plan = found.plan
        rows = {name: recipe for name, recipe in found.weights.items() if name.startswith("router.")}
        self.router = replace(found, weights={n: recipes.literal(r.evaluate(read).float()) for n, r in rows.items()})
        self.outputs = self._every_expert(found, read)
        self.whole = self.mixed(range(self.plan.experts))

    def _every_expert(self, found: Found, read: Reader) -> torch.Tensor:
        """[E, T, H], an expert's weights in memory at a time."""
        outputs = torch.empty(self.plan.experts, *self.x.shape)
        bank = [found.weights.get(f"experts.{part}") for part in ("w_in", "b_in", "w_out", "b_out")]
        ids, one = torch.zeros(len(self.x), 1, dtype=torch.int64), torch.ones(len(self.x), 1)
        for e in range(self.plan.experts):
            w_in, b_in, w_out, b_out = (None if part is None else part.rows(read, e, e + 1).float() for part in bank)
            assert w_in is not None and w_out is not None
            outputs[e] = self.plan.kind.mixture(self.x, ids, one, w_in, b_in, w_out, b_out)
        return outputs

    def routed(self, kept: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids [T, K] of the whole bank, weights [T, K], when the router has the experts `kept` alone."""
        filled = pruned(self.router, kept)
        with torch.device("meta"):
            mixture = Mixture(filled.plan).eval()
        for name, recipe in filled.weights.items():
            setattr(mixture.router, name.removeprefix("router."), nn.Parameter(recipe.evaluate(_nothing)))
        allowed = filled.plan.allowed()
        with torch.no_grad():
            ids, weights = mixture.route(self.x, None if allowed is None or self.modality is None else allowed[self.modality])
        return torch.tensor(list(kept))[ids], weights

    def mixed(self, kept: Sequence[int]) -> torch.Tensor:
        """y [T, H] of the experts `kept`."""
        ids, weights = self.routed(kept)
        y, tokens = torch.zeros_like(self.x), torch.arange(len(self.x))
        for slot in range(ids.shape[1]):
            y += weights[:, slot, None] * self.outputs[ids[:, slot], tokens]
        return y

    def error(self, kept: Sequence[int]) -> float:
        """How far y is from that of all experts, relative to it (root mean square over the tokens)."""
        return float((self.mixed(kept) - self.whole).norm() / self.whole.norm().clamp(min=1e-30))

    def contributions(self) -> torch.Tensor:
        """[E]: how far y would be off without what an expert adds to it, all else unchanged."""
        ids, weights = self.routed(range(self.plan.experts))
        added = torch.zeros(self.plan.experts, dtype=torch.float64)
        tokens = torch.arange(len(self.x))[:, None]
        squares = (weights[..., None] * self.outputs[ids, tokens]).pow(2).sum(-1)
        return added.index_add_(0, ids.flatten(), squares.flatten().double()).sqrt() / self.whole.norm().clamp(min=1e-30)

    def duplicates(self, tolerance: float) -> list[Duplicates]:
        """Pairs of experts whose outputs differ by at most `tolerance` of the larger of the two."""
        flat = self.outputs[:, :FOR_DUPLICATES].flatten(1)
        distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist")
        norms = flat.norm(dim=1)
        error = distance / torch.maximum(norms[:, None], norms[None]).clamp(min=1e-30)
        pairs = (error <= tolerance).triu(1).nonzero().tolist()
        return [Duplicates([a, b], float(error[a, b])) for a, b in pairs]


def _nothing(name: str, start: int, stop: int) -> torch.Tensor:
    raise AssertionError(f"{name} is in memory")
