"""Which experts follow each other: where a token that chose an expert goes in the next mixture.

Dimension letters: T tokens, K chosen per token, E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch


class Steps:
    """Steps between the mixtures of a model while it runs, which have so many `experts`, by name.

    `between` are [E', E] int64 by (mixture before, mixture), counted for each pair of a token's choices.
    """

    def __init__(self, experts: Mapping[str, int]):
        self.experts = experts
        self.between: dict[tuple[str, str], torch.Tensor] = {}
        self._last: tuple[str, torch.Tensor, torch.Tensor] | None = None

    def begin(self) -> None:
        """Other tokens come now."""
        self._last = None

    def add(self, name: str, ids: torch.Tensor, chosen: torch.Tensor) -> None:
        """What the tokens chose in the next mixture: ids [T, K], of which those count that `chosen` [T, K] says."""
        last, self._last = self._last, (name, ids, chosen)
        if last is None or len(last[1]) != len(ids):  # not all tokens come to both
            return
        before, experts = last[0], self.experts[name]
        size = self.experts[before] * experts
        steps = self.between.setdefault((before, name), torch.zeros(self.experts[before], experts, dtype=torch.int64))
        both = last[2][:, :, None] & chosen[:, None, :]
        pairs = (last[1][:, :, None] * experts + ids[:, None, :])[both]
        steps += torch.bincount(pairs, minlength=size).view_as(steps)

    def into(self, name: str) -> tuple[str, torch.Tensor | None]:
        """(the mixture before, the steps from there); none where none were counted."""
        return next(((before, steps) for (before, after), steps in self.between.items() if after == name), ("", None))


def spelled(steps: torch.Tensor | None) -> list[str]:
    """Steps [E', E] as a report has them, without those that nobody took: a text `e:count ...` for each expert before."""
    rows = [] if steps is None else steps.tolist()
    return [" ".join(f"{expert}:{count}" for expert, count in enumerate(row) if count) for row in rows]


def parsed(rows: Sequence[str], experts: int) -> torch.Tensor:
    """The steps [E', E] of `spelled`. Raises ValueError or IndexError for what it did not write."""
    steps = torch.zeros(len(rows), experts, dtype=torch.int64)
    for i, row in enumerate(rows):
        for step in row.split():
            expert, count = (int(word) for word in step.split(":"))
            if not 0 <= expert < experts or count < 0:
                raise ValueError(f"step {step!r}")
            steps[i, expert] = count
    return steps
