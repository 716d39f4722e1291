"""One choice for a whole image, and a choice that was never learned."""

from __future__ import annotations

from torch import Tensor

from mocomp.zoo.routing.bank import Mixture, Routed, renormalised, top_k


class PerImage(Routed):
    """The router sees the mean of an image's tokens, which all have the same experts (Mobile V-MoE, Daxberger 2023)."""

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        logits = self.router(x.mean(1, keepdim=True))
        return self.experts(x, top_k(logits, self.chosen))


class RandomFixed(Mixture):
    """The router's weights are random and frozen; K grew while it was trained, to what it is here (SMoE-Dropout, Chen 2023)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 3):
        super().__init__(hidden, experts, chosen)
        frozen = self.router.weight.detach().clone()
        del self.router.weight
        self.router.register_buffer("weight", 5 * frozen)

    def weights(self, logits: Tensor) -> Tensor:
        return renormalised(logits, self.chosen)
