"""A model as one writes it in a notebook: a tagger whose feed-forward is a mixture that loops over its experts."""

import torch
import torch.nn.functional as F
from torch import nn


class Mixture(nn.Module):
    """x [B, S, H] -> [B, S, H]: each token goes to the two experts that it scores highest."""

    def __init__(self, hidden: int, experts: int, width: int):
        super().__init__()
        self.score = nn.Linear(hidden, experts, bias=False)
        self.up = nn.ModuleList(nn.Linear(hidden, 2 * width, bias=False) for _ in range(experts))
        self.down = nn.ModuleList(nn.Linear(width, hidden, bias=False) for _ in range(experts))

    def forward(self, x):
        flat = x.reshape(-1, x.shape[-1])
        best, chosen = self.score(flat).topk(2, -1)
        shares = best.softmax(-1)
        y = torch.zeros_like(flat)
        for i, (up, down) in enumerate(zip(self.up, self.down, strict=True)):
            token, place = torch.where(chosen == i)
            gate, value = up(flat[token]).chunk(2, -1)
            y.index_add_(0, token, down(F.silu(gate) * value) * shares[token, place, None])
        return y.view_as(x)


class Tagger(nn.Module):
    """words, shapes [B, S] -> tags [B, S, 9], topic [B, 4]."""

    def __init__(self, hidden: int = 48, layers: int = 2):
        super().__init__()
        self.words, self.shapes = nn.Embedding(500, hidden), nn.Embedding(16, hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(hidden) for _ in range(layers))
        self.mixtures = nn.ModuleList(Mixture(hidden, experts=8, width=64) for _ in range(layers))
        self.tag, self.topic = nn.Linear(hidden, 9), nn.Linear(hidden, 4)

    def forward(self, words, shapes):
        h = self.words(words) + self.shapes(shapes)
        for norm, mixture in zip(self.norms, self.mixtures, strict=True):
            h = h + mixture(norm(h))
        return {"tags": self.tag(h), "topic": self.topic(h.mean(1))}


def build():
    torch.manual_seed(0)
    return Tagger()
