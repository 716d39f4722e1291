"""A choice that is made in two steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.routing.bank import Bank, Routed, placed
from mocomp.zoo.routing.softmax_topk import Renormalised


class Cartesian(nn.Module):
    """Two mixtures in sequence, the second on what the first added to: an expert is a pair (CartesianMoE, Su 2024)."""

    def __init__(self, hidden: int, experts: int = 3, chosen: int = 2):
        super().__init__()
        self.first, self.second = Renormalised(hidden, experts, chosen), Renormalised(hidden, experts, chosen)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        return self.second(x + self.first(x))


class TwoLevel(nn.Module):
    """The best group by softmax over groups, in it the best expert by softmax inside; weight the product (SMILE, He 2022)."""

    def __init__(self, hidden: int, groups: int = 2, each: int = 3):
        super().__init__()
        self.group, self.inside = nn.Linear(hidden, groups, bias=False), nn.Linear(hidden, groups * each, bias=False)
        self.experts = Bank(hidden, groups * each)

    def weights(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> weights [B, S, E]."""
        of_group, group = torch.softmax(self.group(x), -1).max(-1, keepdim=True)
        inside = self.inside(x).unflatten(-1, (self.group.out_features, -1))
        of_expert, expert = torch.softmax(inside, -1).max(-1)  # [B, S, groups]
        ids = group * inside.shape[-1] + expert.gather(-1, group)
        return placed(ids, of_group * of_expert.gather(-1, group), self.inside(x))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        return self.experts(x, self.weights(x))


class DSelectK(Routed):
    """K selectors weighted by softmax; each is a product of smooth steps of log2(E) gates (DSelect-k, Hazimeh 2021).

    A step is 0 below -gamma / 2, 1 above gamma / 2, and a cubic between, so a selector is often exactly one expert.
    """

    def __init__(self, hidden: int, experts: int = 4, chosen: int = 2, gamma: float = 1.0):
        super().__init__(hidden, experts, chosen)
        self.gamma, bits = gamma, (experts - 1).bit_length()
        self.router = nn.Linear(hidden, chosen * bits)
        self.mix = nn.Linear(hidden, chosen)
        self.register_buffer("code", (torch.arange(experts)[:, None] >> torch.arange(bits)) % 2 == 1)
        self.code: Tensor

    def step(self, t: Tensor) -> Tensor:
        """The smooth step of each element."""
        t = t.clamp(-self.gamma / 2, self.gamma / 2)
        return -2 / self.gamma**3 * t**3 + 3 / (2 * self.gamma) * t + 0.5

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        on = self.step(self.router(x)).unflatten(-1, (self.chosen, 1, -1))  # [B, S, K, 1, bits]
        selectors = torch.where(self.code, on, 1 - on).prod(-1)  # [B, S, K, E]
        shares = torch.softmax(self.mix(x), -1)
        return self.experts(x, (selectors * shares[..., None]).sum(-2))
