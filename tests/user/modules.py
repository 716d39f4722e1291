"""Modules as users write them, which know nothing of mocomp."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

HIDDEN, KINDS = 8, 5


class Tagger(nn.Module):
    """Two inputs, and two outputs by name: a score for each kind, and the best kind."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, HIDDEN)
        self.inner = nn.Linear(HIDDEN, HIDDEN)
        self.head = nn.Linear(HIDDEN, KINDS)
        self.register_buffer("steps", torch.arange(64.0), persistent=False)
        self.seen: Tensor | None = None

    def forward(self, input_ids: Tensor, mask: Tensor, scale: float = 2.0) -> dict[str, Tensor | None]:
        """input_ids [B, S] int64, mask [B, S] bool -> scores [B, S, KINDS], best [B, S]."""
        x = self.table(input_ids) + self.steps[: input_ids.shape[1], None] / 64
        x = x + torch.tanh(self.inner(x)) * scale
        scores = self.head(x * mask[..., None])
        self.seen = scores.detach().mean()  # as a loss of balance is noted in passing
        return {"scores": scores, "best": scores.argmax(-1), "loss": None}


@dataclass
class Pair:
    """A result with fields."""

    first: Tensor
    second: dict[str, Tensor]


class Noisy(nn.Module):
    """What draws at random whatever it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(HIDDEN, HIDDEN)
        self.noise = nn.Sequential(_Noise())

    def forward(self, x: Tensor) -> Tensor:
        return self.noise(self.inner(x))


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(x, 0.5, training=True)


class Fixed(nn.Module):
    """A module whose second dimension is written into it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Square(nn.Module):
    """What runs at any size, and fixes one while it is traced."""

    def forward(self, x: Tensor) -> Tensor:
        total = x.sum(-1)
        for _ in range(x.shape[0]):
            total = total * 1.5
        return total


class Expert(nn.Module):
    """A feed-forward network."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 12), nn.Linear(12, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(nn.functional.gelu(self.up(x)))


class Mixture(nn.Module):
    """Two of four experts for each token, in a loop over experts."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, 4, bias=False)
        self.experts = nn.ModuleList(Expert() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        weights, ids = self.gate(tokens).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        y = torch.zeros_like(tokens)
        for i, expert in enumerate(self.experts):
            rows, places = (ids == i).nonzero(as_tuple=True)
            y.index_add_(0, rows, expert(tokens[rows]) * weights[rows, places, None])
        return y.reshape(x.shape)


class Routed(nn.Module):
    """A mixture in a model of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(11, HIDDEN), nn.LayerNorm(HIDDEN)
        self.mixture = Mixture()
        self.head = nn.Linear(HIDDEN, KINDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.table(input_ids)
        return self.head(x + self.mixture(self.norm(x)))


def tagger() -> Tagger:
    """A tagger with seeded weights."""
    torch.manual_seed(0)
    return Tagger()


def routed() -> Routed:
    """A model with a mixture, with seeded weights."""
    torch.manual_seed(0)
    return Routed()


number = 7


def no_module() -> int:
    """No module."""
    return 7


def broken() -> nn.Module:
    """What fails."""
    raise RuntimeError("no such weights")


class Mixed(nn.Module):
    """A mixture that runs every expert on every token."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(HIDDEN, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(HIDDEN, 12), nn.ReLU(), nn.Linear(12, HIDDEN)) for _ in range(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x [B, S, HIDDEN] -> x, of the same name and sizes."""
        best, chosen = self.gate(x).softmax(-1).topk(2, -1)
        shares = torch.zeros_like(self.gate(x)).scatter(-1, chosen, best)
        return {"x": sum(shares[..., i, None] * expert(x) for i, expert in enumerate(self.experts))}
