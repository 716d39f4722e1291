"""The tokens that come to each expert, and what they tell of its weights.

Dimension letters: T tokens, H hidden, F expert width, E experts, K chosen per token, C columns of a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from mocomp.experts import Expert
from mocomp.ir.program import Program
from mocomp.ir.specs import parse
from mocomp.quant.algorithms import Moments
from mocomp.weights.recipes import Reader

LIMIT = 256 << 20
"""Bytes, weights in float32 and what the algorithms need beside them, of the experts that are quantised together."""


@dataclass(frozen=True)
class Bank:
    """The weights of some experts, from number `first` on: w_in [E, F or 2F, H], w_out [E, H, F], biases or None."""

    first: int
    kind: Expert
    w_in: Tensor
    b_in: Tensor | None
    w_out: Tensor
    b_out: Tensor | None

    def __len__(self) -> int:
        return len(self.w_in)

    def inner(self, e: int, x: Tensor) -> Tensor:
        """x [T, H] -> what comes into the second weight of the bank's e-th expert [T, F]."""
        return self.kind.inner(F.linear(x, self.w_in[e], None if self.b_in is None else self.b_in[e]))

    def outer(self, e: int, h: Tensor) -> Tensor:
        """h [T, F] -> what the e-th expert gives [T, H]."""
        return F.linear(h, self.w_out[e], None if self.b_out is None else self.b_out[e])


class Routed:
    """Tokens x [T, H] with the experts that they go to, ids [T, K] and shares [T, K], sorted by expert.

    `learned` [T] says of each whether it may be learned from; the others are held out for judging.
    """

    def __init__(self, x: Tensor, ids: Tensor, shares: Tensor, learned: Tensor, experts: int):
        self.x, self.learned = x, learned
        flat, share = ids.reshape(-1), shares.reshape(-1)
        order = torch.argsort(flat, stable=True)
        order = order[share[order] != 0]
        self.token, self.share = order // ids.shape[1], share[order]
        self.ends = [0, *torch.bincount(flat[order], minlength=experts).cumsum(0).tolist()]

    def of(self, expert: int) -> tuple[Tensor, Tensor]:
        """(which tokens [T'], with what share [T']) come to an expert."""
        own = slice(self.ends[expert], self.ends[expert + 1])
        return self.token[own], self.share[own]

    def counts(self) -> list[int]:
        """Tokens to learn from, by expert."""
        return [int(self.learned[self.of(e)[0]].sum()) for e in range(len(self.ends) - 1)]


def banks(program: Program, read: Reader, node: fx.Node, copies: int = 6) -> Iterator[Bank]:
    """The experts of a `mocomp::experts` node, as many at a time as fit with `copies` of their weights."""
    weights = [None if node.args[i] is None else program.recipe_of(node.args[i]) for i in (3, 4, 5, 6)]  # type: ignore[arg-type]
    kind = parse("mocomp.experts", "Expert", str(node.args[7]))
    per_expert = sum(_with_what_it_needs(w.shape[1:], copies) for w in weights if w is not None)
    step, count = max(LIMIT // per_expert, 1), weights[0].shape[0]  # type: ignore[union-attr]
    for e in range(0, count, step):
        w = [None if w is None else w.rows(read, e, min(e + step, count)).float() for w in weights]
        yield Bank(e, kind, *w)  # type: ignore[arg-type]


def _with_what_it_needs(shape: tuple[int, ...], copies: int) -> int:
    """Bytes of a weight [N, K] with the copies that algorithms make of it, and of matrices [K, K]."""
    if len(shape) == 1:
        return 4 * shape[0]
    return 4 * (copies * shape[0] * shape[1] + 3 * shape[1] ** 2)


def forward(bank: Bank, routed: Routed, y: Tensor) -> None:
    """Add to y [T, H] what the experts of the bank give to their tokens."""
    for e in range(len(bank)):
        token, share = routed.of(bank.first + e)
        if len(token):
            y.index_add_(0, token, bank.outer(e, bank.inner(e, routed.x[token])) * share[:, None])


def moments_in(bank: Bank, routed: Routed, few: dict[int, str]) -> Moments:
    """What comes into w_in; experts in `few` that take `all` learn from every token, whoever it goes to."""
    return _moments(bank, routed, few, lambda e, x: x)


def moments_out(bank: Bank, routed: Routed, few: dict[int, str]) -> Moments:
    """What comes into w_out, through the bank's own w_in."""
    return _moments(bank, routed, few, bank.inner)


def _moments(bank: Bank, routed: Routed, few: dict[int, str], through) -> Moments:  # type: ignore[no-untyped-def]
    made = []
    for e in range(len(bank)):
        token, share = routed.of(bank.first + e)
        own = routed.learned[token]
        token, share = token[own], share[own]
        if few.get(bank.first + e) == "all":
            token = routed.learned.nonzero()[:, 0]
            share = torch.ones(len(token))
        made.append(moments(through(e, routed.x[token]), share))
    second, magnitude, tokens = zip(*made, strict=True)
    return Moments(torch.stack(second), torch.stack(magnitude), torch.tensor(tokens))


def moments(x: Tensor, share: Tensor) -> tuple[Tensor, Tensor, int]:
    """x [T, C], share [T] -> (sum of share^2 x x^T [C, C], mean of |x| [C], T)."""
    magnitude = x.abs().mean(0) if len(x) else x.new_zeros(x.shape[1])
    scaled = x * share[:, None]
    return scaled.T @ scaled, magnitude, len(x)
