"""A group, then an expert in it (SMILE, He 2022, arXiv 2212.05191: a node, then a device of it)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch

from mocomp.errors import Unsupported
from mocomp.routers import Evidence, Example, Router


@dataclass(frozen=True)
class TwoLevel(Router):
    """p = softmax(u) over groups, q = softmax(z) inside of each; of the `groups_kept` best groups the best experts, k in all,
    as many from each; the weight is the product p q. The tensor is u [T, groups], what scores the groups.

    Experts of a group stand side by side. SMILE keeps one group and takes one expert of it.
    """

    name: ClassVar[str] = "two_level"
    groups: int = 2
    groups_kept: int = 1

    def __post_init__(self) -> None:
        if self.k % self.groups_kept:
            raise Unsupported(f"{self.k} experts of {self.groups_kept} groups, as many from each", where=self.name)

    def choose(self, logits: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (of_groups,) = tensors
        size, each = logits.shape[-1] // self.groups, self.k // self.groups_kept
        inside = logits.reshape(-1, self.groups, size)  # [T, groups, E / groups]
        _, kept = torch.topk(of_groups, self.groups_kept, -1)
        _, best = torch.topk(inside, each, -1)
        shares = torch.softmax(inside, -1).gather(-1, best) * torch.softmax(of_groups, -1)[..., None]
        rows = kept[..., None].expand(-1, -1, each)
        ids = best.gather(1, rows) + size * rows
        return ids.reshape(-1, self.k), shares.gather(1, rows).reshape(-1, self.k)

    @classmethod
    def guesses(cls, evidence: Evidence) -> Iterator[TwoLevel]:
        """None: it reads the product of a second router, where one vector of each expert's is all that is looked for."""
        return iter(())

    @classmethod
    def examples(cls) -> Iterator[Example]:
        yield from (Example(router, 8, ((None, router.groups),)) for router in (cls(1, 4), cls(2, 2), cls(4, 4, 2)))
