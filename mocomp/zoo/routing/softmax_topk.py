"""Softmax over all experts, then the best: the form of most mixtures (Shazeer 2017)."""

from __future__ import annotations

import torch
from torch import Tensor

from mocomp.zoo.routing.bank import GatedFeedForward, Mixture, placed, renormalised, top_k


class Renormalised(Mixture):
    """The K largest of p, divided by their sum (GShard 2020; Mixtral 2024, with its gated experts)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2):
        super().__init__(hidden, experts, chosen, GatedFeedForward)

    def weights(self, logits: Tensor) -> Tensor:
        return renormalised(logits, self.chosen)


class Plain(Mixture):
    """The K largest of p as they are (V-MoE, Riquelme 2021)."""

    def weights(self, logits: Tensor) -> Tensor:
        return top_k(logits, self.chosen)


class Switch(Plain):
    """The best expert alone, times its p (Switch Transformer, Fedus 2021)."""

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 1):
        super().__init__(hidden, experts, chosen)


class TopKSoftmax(Mixture):
    """The K largest logits, and softmax over these alone (Shazeer 2017 at inference; gpt-oss)."""

    def weights(self, logits: Tensor) -> Tensor:
        values, ids = logits.topk(self.chosen, -1)
        return placed(ids, torch.softmax(values, -1), logits)


class SecondThreshold(Mixture):
    """The best two, their p made to add up to 1; the second only where its share is above a threshold (ST-MoE, Zoph 2022)."""

    def __init__(self, hidden: int, experts: int = 4, threshold: float = 0.3):
        super().__init__(hidden, experts, 2)
        self.threshold = threshold

    def weights(self, logits: Tensor) -> Tensor:
        values, ids = torch.softmax(logits, -1).topk(self.chosen, -1)
        values = values / values.sum(-1, keepdim=True)
        first, second = values.split(1, -1)
        second = torch.where(second > self.threshold, second, 0.0)
        return placed(ids, torch.cat([first, second], -1), logits)


class GumbelSoftmax(Mixture):
    """All experts by softmax(z / tau), which is what Gumbel-softmax training leaves at inference, without noise."""

    def __init__(self, hidden: int, experts: int = 4, tau: float = 0.7):
        super().__init__(hidden, experts, experts)
        self.tau = tau

    def weights(self, logits: Tensor) -> Tensor:
        return torch.softmax(logits / self.tau, -1)
