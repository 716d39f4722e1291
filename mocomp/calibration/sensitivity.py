"""What each format would cost in each weight of each expert, measured on what the expert really sees.

Dimension letters: T tokens, H hidden, F expert width, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from mocomp.calibration.tokens import Bank, Routed, banks, moments_in, moments_out
from mocomp.calibration.walk import Call
from mocomp.ir.program import Program
from mocomp.quant.algorithms import Algorithm, Moments
from mocomp.quant.formats import Format
from mocomp.weights.recipes import Reader


@dataclass
class Sensitivity:
    """A visitor of the float model alone. `costs` {weight: {format: [E]}} are squared errors of the mixture's output summed
    over tokens: those of a token that an expert gets count by its share, and an expert that nobody asks for costs nothing.
    `energy` {weight: sum of squares of what its layer gives} is what they may be held against.
    """

    program: Program
    read: Reader
    formats: list[Format]
    algorithm: Algorithm
    costs: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)

    def visit(self, node: fx.Node, calls: list[list[Call]]) -> list[list[Tensor]]:
        """The experts as they are, and what each would cost."""
        names = {placeholder: name for placeholder, name in self.program.weights()}
        x, ids, shares = (torch.cat([call.args[i] for call in calls[0]]) for i in range(3))
        experts = node.args[3].meta["val"].shape[0]  # type: ignore[union-attr]
        routed = Routed(x, ids, shares, torch.ones(len(x), dtype=torch.bool), experts)
        y = torch.zeros_like(x)
        for name in (names[node.args[i]] for i in (3, 5)):  # type: ignore[index]
            self.costs[name] = {form.text: [] for form in self.formats}
        for bank in banks(self.program, self.read, node):
            self._measure(bank, routed, y, *(names[node.args[i]] for i in (3, 5)))  # type: ignore[index]
        self.energy |= dict.fromkeys((names[node.args[i]] for i in (3, 5)), _squares(y) or 1.0)  # type: ignore[index]
        return [list(y.split([len(call.args[0]) for call in calls[0]]))]

    def wants(self, row: int) -> bool:
        """None: what experts cost is known when all of them have been visited."""
        return False

    def finish(self, row: int, outputs: list[Tensor]) -> None:
        """Outputs tell nothing here."""

    def _measure(self, bank: Bank, routed: Routed, y: Tensor, w_in: str, w_out: str) -> None:
        first = {form.text: self._as(bank.w_in, form, lambda: moments_in(bank, routed, {})) for form in self.formats}
        second = {form.text: self._as(bank.w_out, form, lambda: moments_out(bank, routed, {})) for form in self.formats}
        for e in range(len(bank)):
            token, share = routed.of(bank.first + e)
            x, share = routed.x[token], share[:, None]
            h = bank.inner(e, x)
            exact = bank.outer(e, h) * share
            y.index_add_(0, token, exact)
            for form in self.formats:
                other = Bank(bank.first, bank.kind, first[form.text], bank.b_in, second[form.text], bank.b_out)
                self.costs[w_in][form.text].append(_squares(bank.outer(e, other.inner(e, x)) * share - exact))
                self.costs[w_out][form.text].append(_squares(other.outer(e, h) * share - exact))

    def _as(self, w: Tensor, form: Format, moments) -> Tensor:  # type: ignore[no-untyped-def]
        seen: Moments | None = moments() if self.algorithm.calibrated else None
        return form.decode(*self.algorithm.quantise(w, form, seen))


def _squares(error: Tensor) -> float:
    return float(error.double().pow(2).sum())
