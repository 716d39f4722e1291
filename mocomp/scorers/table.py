"""A row of a table for each id, whatever the token is (hash layers, Roller 2021; task-level MoE, Kudugunta 2021; MoCLE 2023).

The id is of the token in its vocabulary, or of the task, language or cluster. Of hash layers a row is 1 at one expert, and
`topk_uniform` with k = 1 takes it. StableMoE's distilled router (2022) is one too: the product of its word embeddings
with its weights is a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from mocomp.scorers import Reads, Scorer


@dataclass(frozen=True)
class Table(Scorer):
    """z = table[id]; the table is [ids, E], an id is a whole number of each token."""

    name: ClassVar[str] = "table"
    ids: int = 11

    def reads(self) -> Reads:
        return Reads({"id": ()}, {"table": (self.ids, self.experts)}, {"id": self.ids})

    def scores(self, x: Tensor, *tensors: Tensor) -> Tensor:
        ids, table = tensors
        return F.embedding(ids, table)
