"""What a block gives besides its routed experts: nothing, a residual, shared experts, those times a gate of their own.

Everything in the block that gives hidden states for hidden states is a feature, alone and times each gate; the rest is
the smallest sum of features, with constant factors, that is what the block gives when its experts are zero.

Dimension letters: T tokens, H hidden, N features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from mocomp.models.recognition.candidates import ExpertSet
from mocomp.models.recognition.feed_forward import relative
from mocomp.models.recognition.gates import Gate, gates, given_by_parts
from mocomp.models.recognition.measured import Measurement
from mocomp.models.recognition.probing import NotAMixture

EXACT = 1e-7
"""Relative error in float64 up to which a sum of terms is the rest."""
MOST_TERMS = 3
MOST_NUMBERS = 1 << 15
"""Numbers of y that the search for terms looks at; what it finds is proven on all."""
MOST_FEATURES = 100
TRIED = 8
"""Sums of one length that are proven, the nearest first."""

Lost = Callable[[Tensor], Tensor]
"""x [.., H] -> how much weight each token lost because its expert was full [.., 1]."""


@dataclass(frozen=True)
class Term:
    """One summand: what the submodule `module` gives for x ("" is x itself), times a gate, times `factor`.

    With `lost` it is times the weight that a token lost because its expert was full: a token that no expert takes goes
    on as it is (Switch Transformer).
    """

    module: str = ""
    gate: Gate | None = None
    lost: bool = False
    factor: float = 1.0

    def value(self, block: nn.Module, x: Tensor, lost: Lost) -> Tensor:
        """x [.., H] -> [.., H]; traceable."""
        y = block.get_submodule(self.module)(x) if self.module else x
        y = self.gate.value(block, x) * y if self.gate else y
        y = lost(x).to(y.dtype) * y if self.lost else y
        return y if self.factor == 1.0 else self.factor * y


@dataclass(frozen=True)
class Rest:
    """The rest of a block as a sum of terms."""

    terms: tuple[Term, ...] = ()

    def add(self, block: nn.Module, x: Tensor, y: Tensor, lost: Lost) -> Tensor:
        """x [.., H], y [.., H'] -> y plus the rest; traceable."""
        for term in self.terms:
            y = y + term.value(block, x, lost)
        return y


def find_rest(block: nn.Module, experts: ExpertSet, measurements: list[Measurement], lost: Lost | None) -> tuple[Rest, float]:
    """The rest that is what the block gives without its experts, in every measurement, and its error.

    `lost` is None where experts have room for all. Raises NotAMixture when no sum is the rest.
    """
    if all(not float(one.y0.abs().max()) for one in measurements):
        return Rest(), 0.0
    nearest = float("inf")
    for rest in _sums(block, experts, measurements, lost):
        error = max(_error(block, rest, one, lost or _nothing_lost) for one in measurements)
        if error < EXACT:
            return rest, error
        nearest = min(nearest, error)
    raise NotAMixture("what it gives besides its experts is no sum of its other parts", nearest)


def _nothing_lost(x: Tensor) -> Tensor:
    return torch.zeros_like(x[..., :1])


def _error(block: nn.Module, rest: Rest, measurement: Measurement, lost: Lost) -> float:
    x, y0 = measurement.draw.x, measurement.y0
    made = rest.add(block, x, y0.new_zeros(*x.shape[:-1], y0.shape[-1]), lost)
    return relative(made.reshape(y0.shape), y0) if made.numel() == y0.numel() else float("inf")


def _sums(block: nn.Module, experts: ExpertSet, measurements: list[Measurement], lost: Lost | None) -> Iterator[Rest]:
    """Sums of few terms, by least squares of their factors, those that leave least first."""
    fullest = max(measurements, key=lambda one: float(one.y0.norm()))
    terms, columns = _features(block, experts, fullest, lost)
    size = columns.norm(dim=0).clamp(min=1e-30)
    unit = columns / size
    y0 = fullest.y0.reshape(-1)[: len(columns)]
    products, with_y = unit.T @ unit, unit.T @ y0
    for count in range(1, min(MOST_TERMS, len(terms)) + 1):
        chosen = torch.tensor(list(combinations(range(len(terms)), count)))  # [sums, count]
        gram, right = products[chosen[:, :, None], chosen[:, None, :]], with_y[chosen]
        factors, _ = torch.linalg.solve_ex(gram, right[..., None])
        explained = (factors[..., 0] * right).sum(-1).nan_to_num(nan=-1.0, posinf=-1.0, neginf=-1.0)
        explained = torch.where(factors[..., 0].abs().amax(-1) < 1e6 * y0.norm(), explained, -1.0)
        for i in explained.argsort(descending=True)[:TRIED].tolist():
            scaled = [float(f / size[j]) for f, j in zip(factors[i, :, 0], chosen[i].tolist(), strict=True)]
            picked = [terms[j] for j in chosen[i].tolist()]
            yield Rest(tuple(replace(term, factor=_rounded(f)) for term, f in zip(picked, scaled, strict=True)))


def _rounded(factor: float) -> float:
    return float(f"{factor:.6g}")


def _features(block: nn.Module, experts: ExpertSet, measurement: Measurement, lost: Lost | None) -> tuple[list[Term], Tensor]:
    """Terms with factor 1, and what they give for a measurement, cut to so many numbers [numbers, N]; no two alike."""
    x, width = measurement.draw.x, measurement.y0.shape[-1]
    given = given_by_parts(block, experts, x)
    factors: list[tuple[Gate | None, Tensor | float]] = [(None, 1.0)]
    factors += [(gate, gate.of(given[gate.module])) for gate in gates(given, x)]
    bodies = [("", x), *((name, made) for name, made in given.items() if made.shape == (*x.shape[:-1], width))]
    terms: list[Term] = []
    columns: list[Tensor] = []

    def offer(term: Term, value: Tensor) -> None:
        column = value.reshape(-1)[:MOST_NUMBERS]
        alike = any(torch.equal(column, other) for other in columns)
        if len(terms) < MOST_FEATURES and not alike and float(column.abs().max()):
            terms.append(term)
            columns.append(column)

    for name, body in bodies:
        if body.shape[-1] == width:
            for gate, factor in factors:
                offer(Term(name, gate), factor * body if not isinstance(factor, Tensor) or _fits(factor, body) else body)
    if lost is not None and x.shape[-1] == width:
        offer(Term(lost=True), lost(x) * x)
    return terms, torch.stack(columns, -1) if columns else x.new_zeros(0, 0)


def _fits(factor: Tensor, body: Tensor) -> bool:
    return factor.shape[-1] in (1, body.shape[-1])
