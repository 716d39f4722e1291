"""Experts by their binary codes (DSelect-k, Hazimeh 2021, arXiv 2106.03760; the form that reads the token)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.routers import AnyNumber, Evidence, Example


@dataclass(frozen=True)
class DSelectK(AnyNumber):
    """Each of `selectors` picks expert e with r_e = the product over bits j of S(z_j) where e has bit j, else 1 - S(z_j).

    S is the smooth step: a cubic between -`gamma` / 2 and `gamma` / 2, exactly 0 and 1 outside. The weight of e is the sum
    over selectors of softmax(a) r_e. Logits are the z of the first selector, of the second ..., then all a; bit j of e
    counts 2^j. Where E is no power of 2, codes from E on weigh nothing, as the paper's penalty has them trained.
    """

    name: ClassVar[str] = "dselect_k"
    selectors: int = 2
    gamma: float = 1.0

    def columns(self, experts: int) -> int:
        return self.selectors * (self.bits + 1)

    @property
    def bits(self) -> int:
        """How long the code of an expert is."""
        return (self.k - 1).bit_length()

    def shares(self, logits: torch.Tensor, *tensors: torch.Tensor) -> torch.Tensor:
        codes, mixing = logits.split([self.selectors * self.bits, self.selectors], -1)
        steps = self._smooth_step(codes.reshape(-1, self.selectors, self.bits))
        picks = torch.softmax(mixing, -1)[..., None]  # [T, selectors, 1]
        for j in range(self.bits):
            step = steps[..., j : j + 1]
            picks = torch.cat([picks * (1 - step), picks * step], -1)
        return picks.sum(1)[:, : self.k]

    def _smooth_step(self, t: torch.Tensor) -> torch.Tensor:
        """Clamped before the cubic, and not after, so that its ends are exact whatever t is."""
        u = (t / self.gamma + 0.5).clamp(0.0, 1.0)
        return u * u * (3 - 2 * u)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[DSelectK]:
        """None: its logits are not one for each expert, which is where one looks for a router."""
        return iter(())

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router, router.k) for router in (cls(8), cls(5, 3, 2.0)))
