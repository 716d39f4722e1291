"""Blocks that are nearly a mixture that is known: each does one thing otherwise than its looks say."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.styles.transformers4 import GatedMLP


class Plain(nn.Module):
    """Softmax top-2, divided by the sum, every expert for every token, which torch.export can trace as it stands."""

    k = 2

    def __init__(self, hidden: int = 16, width: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden, experts, bias=False)
        self.experts = nn.ModuleList(GatedMLP(hidden, width) for _ in range(experts))

    def scores(self, x: Tensor) -> Tensor:
        """x [B, S, H] -> [B, S, E]."""
        return self.gate(x)

    def shares(self, z: Tensor) -> Tensor:
        """Scores -> weights, each [B, S, E]."""
        best = z.softmax(-1).topk(self.k, -1)
        return torch.zeros_like(z).scatter(-1, best.indices, best.values / best.values.sum(-1, keepdim=True))

    def expert(self, number: int, x: Tensor, share: Tensor) -> Tensor:
        """What one expert adds, x [B, S, H], share [B, S, 1] -> [B, S, H]."""
        return share * self.experts[number](x)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.shares(self.scores(x))
        return torch.stack([self.expert(e, x, shares[..., [e]]) for e in range(len(self.experts))]).sum(0)


class ActiveDropout(Plain):
    """Drops in evaluation too."""

    def expert(self, number: int, x: Tensor, share: Tensor) -> Tensor:
        return share * F.dropout(self.experts[number](x), 0.2, training=True)


class NoisyChoice(Plain):
    """Chooses by logits plus noise that is drawn anew, weighs by probabilities."""

    def shares(self, z: Tensor) -> Tensor:
        ids = (z + torch.randn_like(z)).topk(self.k, -1).indices
        return torch.zeros_like(z).scatter(-1, ids, z.softmax(-1).gather(-1, ids))


class FrozenNoise(Plain):
    """The same with noise that was drawn once, an offset for each expert."""

    noise: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", 0.5 * torch.randn(4))

    def shares(self, z: Tensor) -> Tensor:
        ids = (z + self.noise).topk(self.k, -1).indices
        return torch.zeros_like(z).scatter(-1, ids, z.softmax(-1).gather(-1, ids))


class WeightBefore(Plain):
    """Experts are given weight * x, and what they give is not weighed."""

    def expert(self, number: int, x: Tensor, share: Tensor) -> Tensor:
        return self.experts[number](share * x)


class OddCapacity(Plain):
    """Room for floor(S / E) + 1 tokens of a sequence, which no published layer counts so."""

    def shares(self, z: Tensor) -> Tensor:
        mask = F.one_hot(z.argmax(-1), 4)
        kept = mask * (mask.cumsum(1) <= z.shape[1] // 4 + 1)
        return z.softmax(-1) * kept


class LargeCapacity(Plain):
    """Room for 64 tokens of a sequence: at the sizes of an example nothing is dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.expert_capacity = 64

    def shares(self, z: Tensor) -> Tensor:
        mask = F.one_hot(z.argmax(-1), 4)
        return z.softmax(-1) * (mask * (mask.cumsum(1) <= self.expert_capacity))


class SharedWeights(Plain):
    """Experts 0 and 2 are one module, and experts 1 and 3 have one matrix in common."""

    def __init__(self) -> None:
        super().__init__()
        self.experts[2] = self.experts[0]
        self.experts[3].get_submodule("up_proj").weight = self.experts[1].get_parameter("up_proj.weight")


class NormedGate(Plain):
    """The gate reads x after a norm that experts do not."""

    def __init__(self) -> None:
        super().__init__()
        self.router_norm = nn.LayerNorm(16)
        nn.init.normal_(self.router_norm.weight)

    def scores(self, x: Tensor) -> Tensor:
        return self.gate(self.router_norm(x))


class NearlySilu(Plain):
    """An activation that is off by a thousandth."""

    def expert(self, number: int, x: Tensor, share: Tensor) -> Tensor:
        gate, up, down = (self.experts[number].get_submodule(f"{name}_proj") for name in ("gate", "up", "down"))
        return share * down(gate(x) * torch.sigmoid(1.001 * gate(x)) * up(x))


class HiddenScale(Plain):
    """Weights times 2.4, which a buffer holds."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.4))

    def shares(self, z: Tensor) -> Tensor:
        return super().shares(z) * self.scale


class GrowingK(Plain):
    """Two experts for each token where there are many, and one where there are few."""

    def shares(self, z: Tensor) -> Tensor:
        many = z.shape[0] * z.shape[1] > 100
        best = z.softmax(-1).topk(2 if many else 1, -1)
        return torch.zeros_like(z).scatter(-1, best.indices, best.values)


class HalfRouter(Plain):
    """A router that computes in float16, whose rounding decides between experts that are close."""

    def scores(self, x: Tensor) -> Tensor:
        return F.linear(x.half(), self.gate.weight.half()).to(x.dtype)
