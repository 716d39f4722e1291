"""One expert for each input, its weights a mean of the experts' weights.

Dimension letters: B batch, S sequence, E experts, H hidden, F expert width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mocomp.zoo.routing.bank import WIDTH


class Smear(nn.Module):
    """Softmax over experts of the mean token of a sequence merges their weights (SMEAR, Muqeeth 2023)."""

    def __init__(self, hidden: int, experts: int = 4):
        super().__init__()
        self.router = nn.Linear(hidden, experts, bias=False)
        self.w_in, self.w_out = (nn.Parameter(torch.empty(experts, *s)) for s in ((WIDTH, hidden), (hidden, WIDTH)))

    def shares(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> shares [B, E]."""
        return torch.softmax(self.router(x.mean(1)), -1)

    def merged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [B, S, H] -> the weights of the expert of each sequence, [B, F, H] and [B, H, F]."""
        shares = self.shares(x)
        return torch.einsum("be,efh->bfh", shares, self.w_in), torch.einsum("be,ehf->bhf", shares, self.w_out)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> y [B, S, H]."""
        w_in, w_out = self.merged(x)
        return torch.relu(x @ w_in.transpose(1, 2)) @ w_out.transpose(1, 2)


class WeightEnsemble(Smear):
    """theta_0 + sum of w_i (theta_i - theta_0): a model before fine-tuning and the differences of tuned ones, by a gate of the
    mean token that need not add up to 1 (WEMoE, Tang 2024)."""

    def __init__(self, hidden: int, experts: int = 3):
        super().__init__(hidden, experts)
        self.router = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, experts))
        self.base_in, self.base_out = nn.Parameter(torch.empty(WIDTH, hidden)), nn.Parameter(torch.empty(hidden, WIDTH))

    def shares(self, x: Tensor) -> Tensor:
        return self.router(x.mean(1))

    def merged(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.shares(x)
        return (
            self.base_in + torch.einsum("be,efh->bfh", shares, self.w_in - self.base_in),
            self.base_out + torch.einsum("be,ehf->bhf", shares, self.w_out - self.base_out),
        )
