"""The proof that a block is a router over experts, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from mocomp.models.recognition import canonical_block, crowds, feed_forward, measured, rest, routing
from mocomp.models.recognition.calls import Call, Port
from mocomp.models.recognition.candidates import ExpertSet
from mocomp.models.recognition.canonical_block import Mixture
from mocomp.models.recognition.feed_forward import Kind
from mocomp.models.recognition.measured import Draw, Measurement, Shares
from mocomp.models.recognition.probing import NotAMixture
from mocomp.models.recognition.routing import Routing

PROVEN = 1e-5
"""Relative error in float64 up to which a canonical block is the block."""
Made = TypeVar("Made")


@dataclass
class Proof:
    """One block, one set of experts in it, and one way for hidden states to go through it.

    `depth` counts the steps that were passed.
    """

    block: nn.Module
    call: Call
    port: Port
    experts: ExpertSet
    depth: int = 0

    def run(self, kind: Kind | None, route: Routing | None) -> tuple[Mixture, float]:
        """The canonical form, and its error with the block's own weights; `kind` and `route` are tried first.

        Raises NotAMixture, with the nearest miss. The experts have their weights again at the end.
        """
        kept = {path: value.clone() for path, value in feed_forward.values_of(self.block, self.experts).items()}
        try:
            draws = self._step(self._draws)
            feed_forward.randomise(self.block, self.experts, torch.Generator().manual_seed(5))
            runs = self._step(lambda: self._measured(draws))
            known = self._step(lambda: self._kind(runs, kind))
            shares = self._step(lambda: self._shares(known, runs))
            routed = self._step(lambda: self._routing(known, shares, route))
            other, _ = self._step(lambda: rest.find_rest(self.block, self.experts, runs, routed.lost_by(self.block)))
            feed_forward.put(self.block, kept)
            return self._step(lambda: self._final(known, routed, other, draws))
        finally:
            feed_forward.put(self.block, kept)

    def _step(self, step: Callable[[], Made]) -> Made:
        try:
            made = step()
        except NotAMixture as reason:
            reason.depth = self.depth
            raise
        self.depth += 1
        return made

    def _draws(self) -> list[Draw]:
        if self.call.told:
            raise NotAMixture(f"its {self.call.told} is set from outside before it is called")
        draws = measured.draws(self.block, self.call, self.port, self.experts.count)
        if measured.depends_on_more(self.block, self.call, self.port, draws):
            raise NotAMixture("what it gives depends on other arguments than its hidden states")
        return draws

    def _measured(self, draws: list[Draw]) -> list[Measurement]:
        runs = [measured.measure(self.block, self.experts, self.port, draw) for draw in draws]
        if not any(float(part.abs().max()) for run in runs for _, part in run.parts):
            raise NotAMixture("its experts change nothing in it, or no input reaches them")
        return runs

    def _kind(self, runs: list[Measurement], first: Kind | None) -> Kind:
        """What the experts are: asked of their modules alone if they can be, else of what they add to the block."""
        sizes = runs[0].draw.x.shape[-1], runs[0].y0.shape[-1]
        if self.experts.modules:
            try:
                error_of = feed_forward.alone(self.block, self.experts, *sizes)
            except NotAMixture:
                pass  # they take more than hidden states, so it is the block that must tell
            else:
                return feed_forward.identify(self.block, self.experts, *sizes, error_of, first)[0]
        fullest = max(runs, key=lambda run: run.draw.tokens.shape[0])
        explained = lambda expert, bank: measured.solve(fullest, expert, bank)[1]  # noqa: E731
        return feed_forward.identify(self.block, self.experts, *sizes, explained, first)[0]

    def _shares(self, kind: Kind, runs: list[Measurement]) -> list[Shares]:
        """The weights in every measurement. Raises NotAMixture where experts times weights do not explain it."""
        bank = kind.bank(self.block, self.experts)
        found = []
        for run in runs:
            shares, left = measured.solve(run, kind.expert, bank)
            if left > measured.EXPLAINED:
                raise NotAMixture(f"no weights times its experts give what they add; {left:.1e} is left", left)
            found.append(shares)
        return found

    def _routing(self, kind: Kind, shares: list[Shares], first: Routing | None) -> Routing:
        found, _ = routing.identify(self.block, self.experts, shares, first)
        alike = crowds.crowd(self.block, self.call, self.port)
        if found.router.causal and alike and all(crowds.keeps_tokens_apart(self.block, self.port, draw) for draw in alike):
            return found
        # how many tokens there are decides, so others are asked as well
        more = self._measured([*crowds.several(self.block, self.call, self.port), *(alike if found.router.causal else [])])
        return routing.identify(self.block, self.experts, shares + self._shares(kind, more), found)[0]

    def _final(self, kind: Kind, route: Routing, other: rest.Rest, draws: list[Draw]) -> tuple[Mixture, float]:
        example, asides = canonical_block.asides(self.block, self.port, route, draws)
        form = Mixture(self.port, self.experts, kind, route, other, example, asides)
        error = canonical_block.error(self.block, form, [*draws, *crowds.crowd(self.block, self.call, self.port)])
        if error >= PROVEN:
            raise NotAMixture(f"with its own weights its canonical form is off by {error:.1e}", error)
        return form, error


def prove(
    block: nn.Module, call: Call, port: Port, experts: ExpertSet, kind: Kind | None, route: Routing | None
) -> tuple[Mixture, float]:
    """The proof that `block` is a router over `experts`; see `Proof.run`."""
    return Proof(block, call, port, experts).run(kind, route)
