"""Tokens that find their expert full go on to the next (capacity-aware inference, He 2025, arXiv 2503.05066: token reroute).

The paper leaves open in which order tokens are served: here by score, and all first choices before any second one, as in
GShard, so that the order of the tokens does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber, Example, largest, places


@dataclass(frozen=True)
class CapacityReroute(AnyNumber):
    """p = softmax(z); each token wants `each` experts, an expert has room for c = ceil(T * each * `factor` / E) tokens.

    In round j a token that has fewer than it wants asks its j-th best expert, which takes those of largest p that it has
    room for; there are `rounds`, or E where that is 0. Weights p, divided by their sum when `normalize`. Tokens that tie
    for the last place are all taken.
    """

    name: ClassVar[str] = "capacity_reroute"
    causal: ClassVar[bool] = False
    each: int = 1
    factor: float = 1.0
    rounds: int = 0
    normalize: bool = False

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        scores = torch.softmax(logits, -1)
        _, order = torch.topk(logits, self.rounds or self.k, -1)
        room = (places(logits > float("-inf"), self.each * self.factor, 0) * (1 - 1e-6)).ceil().long()  # [1, E]
        taken = torch.zeros_like(logits, dtype=torch.bool)
        experts = torch.arange(self.k, device=logits.device)
        for j in range(order.shape[1]):
            asks = (taken.sum(-1, keepdim=True) < self.each) & (order[:, j : j + 1] == experts)
            accepted = largest(torch.where(asks & (logits > float("-inf")), scores, float("-inf")), room, 0)
            taken, room = taken | accepted, room - accepted.sum(0, keepdim=True)
        weights = torch.where(taken, scores, 0.0)
        return weights / weights.sum(-1, keepdim=True).clamp(min=1e-20) if self.normalize else weights

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router) for router in (cls(8), cls(8, 2, 0.7, normalize=True), cls(8, 1, 0.6, rounds=2)))
