"""Which kind of router gives the weights that were measured.

Dimension letters: T tokens, B sequences, S tokens of a sequence, E experts, K chosen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from mocomp import routers
from mocomp.ir.specs import spell
from mocomp.models.recognition.candidates import ExpertSet
from mocomp.models.recognition.feed_forward import floats_in
from mocomp.models.recognition.gates import Gate, gates, given_by_parts
from mocomp.models.recognition.logits import Scores, candidates, vectors
from mocomp.models.recognition.measured import Draw, Shares
from mocomp.models.recognition.probing import NotAMixture, tensor_at
from mocomp.models.recognition.rest import Lost
from mocomp.routers import ANY_OPS, Evidence, Router

CLOSE = 1e-5
"""Relative error up to which weights are a router's: codes add 1e-6 or less to a sum before they divide by it."""
PRESENT = 1e-9
"""The measured weight below which a token does not have an expert: what least squares in float64 leave."""


@dataclass(frozen=True)
class Routing:
    """How a block routes: scores, from which a router of that kind chooses, with the block's own `tensors`.

    `log`: the scores are shares already, and their logarithm is what the router wants. Weights are `factor` times the
    router's, times what a `gate` of the block gives for each token.
    """

    scores: Scores
    log: bool
    router: Router
    tensors: tuple[str, ...]
    factor: float = 1.0
    gate: Gate | None = None

    def logits(self, block: nn.Module, x: Tensor) -> Tensor:
        """x [.., H] -> [T, E], or [B, S, E] for a router by sequence."""
        z = self.scores.scores(block, x)
        z = torch.log(z) if self.log else z
        return by_sequence(z, x) if self.router.per_sequence else z

    def vectors(self, block: nn.Module) -> list[Tensor]:
        """The router's own tensors, each [E]."""
        return [tensor_at(block, name).reshape(-1) for name in self.tensors]

    def scaled(self, block: nn.Module, x: Tensor, weights: Tensor) -> Tensor:
        """x [.., H], weights [T, K] of the router -> weights [T, K]; traceable."""
        weights = weights if self.factor == 1.0 else weights * self.factor
        return weights if self.gate is None else weights * self.gate.value(block, x).reshape(-1, 1).to(weights.dtype)

    def lost_by(self, block: nn.Module) -> Lost | None:
        """How much weight tokens lose because an expert is full; None where experts have room for all."""
        if self.router.uncapped() is None:
            return None
        return lambda x: self._total(block, x, self.router.uncapped()) - self._total(block, x, self.router)

    def _total(self, block: nn.Module, x: Tensor, router: Router | None) -> Tensor:
        """x [.., H] -> the sum of a token's weights [.., 1]."""
        assert router is not None
        _, weights = torch.ops.mocomp.route(self.logits(block, x), self.vectors(block), spell(router))
        return self.scaled(block, x, weights).sum(-1).reshape(*x.shape[:-1], 1)


def by_sequence(z: Tensor, x: Tensor) -> Tensor:
    """z [T, E] as [B, S, E], where x is [B, .., H]."""
    return z.reshape(x.shape[0], -1, z.shape[-1])


def identify(block: nn.Module, experts: ExpertSet, shares: list[Shares], first: Routing | None = None) -> tuple[Routing, float]:
    """The routing under which the measured weights come about; `first` is tried before any other.

    Raises NotAMixture with the nearest miss when none does.
    """
    nearest = (float("inf"), "none")
    for routing in [first] if first else []:
        error = _error(block, routing, shares)
        if error < CLOSE:
            return routing, error
    kinds = _kinds(block, experts, shares)
    found = 0
    for scores, gate in _sources(block, experts, shares[0].draw):
        found += 1
        for plain in _routings(block, experts, scores, shares, kinds):
            if gate and not plain.router.causal:  # a gate on a capacity would be the product of two long lists
                continue
            guess = replace(plain, gate=gate)
            error, factor = _best(block, guess, shares)
            if error < CLOSE:
                return _scaled(guess, factor), error
            if error < nearest[0]:
                nearest = (error, spell(guess.router))
    if not found:
        raise NotAMixture(f"nothing in it gives a score for each of {experts.count} experts")
    raise NotAMixture(f"no known router does this; the nearest, {nearest[1]}, is off by {nearest[0]:.1e}", nearest[0])


def _sources(block: nn.Module, experts: ExpertSet, draw: Draw) -> Iterator[tuple[Scores, Gate | None]]:
    """Every way to scores, first without a gate, then times each that the block might have."""
    scores = list(candidates(block, experts, draw))
    yield from ((one, None) for one in scores)
    given = given_by_parts(block, experts, draw.x)
    factors = [gate for gate in gates(given, draw.x) if gate.of(given[gate.module]).shape[-1] == 1]
    yield from product(scores, factors)


def _routings(
    block: nn.Module, experts: ExpertSet, scores: Scores, shares: list[Shares], kinds: dict[int, list[Router]]
) -> Iterator[Routing]:
    z = scores.scores(block, shares[0].draw.x)
    logs = (False, True) if bool((z >= 0).all()) else (False,)
    own: list[tuple[str, ...]] = [(), *((name,) for name in vectors(block, experts))]
    for tensors in own:
        yield from (Routing(scores, log, kind, tensors) for log in logs for kind in kinds[len(tensors)])


def _preference(router: Router) -> tuple[bool, ...]:
    """Of two kinds that choose alike here, that which targets do best comes first."""
    return router.per_sequence, not router.causal, not router.fixed, router.as_softmax() is None


def _kinds(block: nn.Module, experts: ExpertSet, shares: list[Shares]) -> dict[int, list[Router]]:
    """Every kind that might be it, the likeliest first, by how many tensors it reads."""
    evidences = _evidences(block, experts, shares)
    return {n: sorted(routers.candidates(evidence), key=_preference) for n, evidence in evidences.items()}


def _evidences(block: nn.Module, experts: ExpertSet, shares: list[Shares]) -> dict[int, Evidence]:
    """What is known of the routing, by how many tensors it may read."""
    k = max(int((_present(one)).sum(-1).max()) for one in shares)
    counts = {value for module in block.modules() for value in vars(module).values() if type(value) is int}
    return {
        n: Evidence(
            experts=experts.count,
            k=max(k, 1),
            tensors=((experts.count,),) * n,
            ops=ANY_OPS,
            topks=tuple(sorted({k, *(count for count in counts if 0 < count <= experts.count)})),
            numbers=frozenset(floats_in(block).values()),
            loads=tuple(_load(one, sequences=1) for one in shares),
            sequence_loads=tuple(_load(one, sequences=one.draw.x.shape[0]) for one in shares),
        )
        for n in (0, 1)
    }


def _load(shares: Shares, sequences: int) -> tuple[int, int]:
    """(tokens of a sequence, the most of them that one expert had), where tokens are so many sequences."""
    present = _present(shares).reshape(sequences, -1, shares.weights.shape[1])
    return present.shape[1], int(present.sum(1).max())


def _present(shares: Shares) -> Tensor:
    return shares.weights.abs() > PRESENT * shares.weights.abs().max()


def _scaled(routing: Routing, factor: float) -> Routing:
    if abs(factor - 1) < CLOSE:
        return routing
    factor = float(f"{factor:.6g}")
    router = routing.router.scaled(factor)
    return replace(routing, factor=factor) if router is None else replace(routing, router=router)


def _best(block: nn.Module, routing: Routing, shares: list[Shares]) -> tuple[float, float]:
    """(error, factor): how far the measured weights are from a factor times the routing's; it stops at the first that is."""
    worst, factor = 0.0, 0.0
    for one in shares:
        error, found = _compare(block, routing, one)
        factor = factor or found
        worst = max(worst, error, abs(found - factor))
        if worst >= CLOSE:
            break
    return worst, factor


def _error(block: nn.Module, routing: Routing, shares: list[Shares]) -> float:
    """How far the measured weights are from the routing's."""
    worst = 0.0
    for one in shares:
        error, factor = _compare(block, routing, one)
        worst = max(worst, error, abs(factor - routing.factor))
    return worst


def _compare(block: nn.Module, routing: Routing, shares: Shares) -> tuple[float, float]:
    """(error, factor) of one draw; infinite where the router cannot take such scores."""
    try:
        ids, weights = routing.router.choose(routing.logits(block, shares.draw.x), *routing.vectors(block))
        weights = replace(routing, factor=1.0).scaled(block, shares.draw.x, weights)
    except Exception:  # a guess may be impossible in ways of its own
        return float("inf"), 1.0
    made = torch.zeros_like(shares.weights).scatter_add(1, ids, weights.to(shares.weights.dtype))
    made = torch.where(shares.seen, made, 0.0)
    total, measured = float((made * made).sum()), float((made * shares.weights).sum())
    factor = measured / total if total else 1.0
    error = float((factor * made - shares.weights).abs().max() / shares.weights.abs().max().clamp(min=1e-30))
    return (error if math.isfinite(error) else float("inf")), factor
