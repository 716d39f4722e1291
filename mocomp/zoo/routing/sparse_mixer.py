"""SparseMixer-v2 as it is run at inference (Phi-3.5-MoE 2024)."""

from __future__ import annotations

import torch
from torch import Tensor

from mocomp.zoo.routing.bank import GatedFeedForward, Mixture, placed


class SparseMixer(Mixture):
    """The best expert, and the best of the others; each weighted by softmax over the logits that are near its own.

    Near means that (largest - z) / max(|z|, largest) is at most twice the jitter.
    """

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2, jitter: float = 0.1):
        super().__init__(hidden, experts, chosen, GatedFeedForward)
        self.jitter = jitter

    def weights(self, logits: Tensor) -> Tensor:
        left, total = logits, torch.zeros_like(logits)
        for _ in range(self.chosen):
            largest, best = left.max(-1, keepdim=True)
            far = (largest - logits) / logits.abs().clamp(min=largest) > 2 * self.jitter
            near = torch.softmax(left.masked_fill(far, float("-inf")), -1)
            total = total + placed(best, near.gather(-1, best), logits)
            left = left.scatter(-1, best, float("-inf"))
        return total
