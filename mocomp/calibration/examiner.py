"""What two models make of the same rows, added up row by row.

Dimension letters: T tokens, B batch, S sequence, V vocabulary, C classes, H hidden, K chosen per token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mocomp.calibration.data import Row, modality_of
from mocomp.models.interface import Interface
from mocomp.plans.modality import Modality
from mocomp.targets import Arrays, Mixture
from mocomp.verify.quality import OutputJudge, common
from mocomp.verify.reference import Observation
from mocomp.verify.similarity import Similarity, pooled


class Examiner:
    """Collects the figures of an artifact beside a reference; of a row only its vector is kept, for models that make one.

    `modality` says whose perplexity a token's is; `mixtures` are those of which both tell what they choose.
    """

    def __init__(self, interface: Interface, mixtures: list[Mixture], modality: Modality | None):
        self.interface, self.mixtures, self.modality = interface, mixtures, modality
        self.outputs, self.similarity, self.vectors = OutputJudge(), Similarity(), ""
        self.rows = self.tokens = 0
        self._same = {m.layer: 0.0 for m in mixtures}

    def add(self, row: Row, seen: Observation, got: Arrays) -> None:
        """A row of a batch of one: the reference's observation of it, and the artifact's values."""
        mask = row["attention_mask"].bool() if "attention_mask" in row else None
        self.rows += 1
        self._add_outputs(row, seen, got, mask)
        if "input_ids" in row:
            there = torch.ones_like(row["input_ids"], dtype=torch.bool) if mask is None else mask
            self.tokens += int(there.sum())
            self._add_choices(seen, got, there.reshape(-1))

    def agreement(self) -> dict[str, float]:
        """By layer, the share of the experts that the artifact chose which the reference chose too."""
        return {layer: same / max(self.tokens, 1) for layer, same in self._same.items()}

    def _add_choices(self, seen: Observation, got: Arrays, there: Tensor) -> None:
        for m in self.mixtures:
            chosen = m.chosen(got)
            ids, others = (torch.from_numpy(values.copy())[there] for values in (chosen, seen.routed[m.layer].ids))
            self._same[m.layer] += float(common(ids, others).sum())

    def _add_outputs(self, row: Row, seen: Observation, got: Arrays, mask: Tensor | None) -> None:
        name = first_of(seen)
        exact, other = torch.from_numpy(seen.outputs[name]), torch.from_numpy(got[name])
        own = mask if mask is not None and exact.dim() == 3 and mask.shape == exact.shape[:2] else None
        if name != "logits":
            self.outputs.add(exact, other, next_token=False, mask=own)
        elif self.interface.kind == "generator":
            self.outputs.add(exact, other, row["input_ids"], mask=own, groups=modality_of(row, self.modality))
        else:  # of each place [B, S, V], or of classes [B, C]
            exact, other = (values if values.dim() == 3 else values[:, None] for values in (exact, other))
            self.outputs.add(exact, other, mask=own)
        if self.interface.kind == "encoder" or (self.interface.kind == "vision" and name != "logits"):
            vector, how = pooled(got[name], mask)
            self.similarity.add(vector, pooled(seen.outputs[name], mask)[0])
            self.vectors = f"{name}, {how}"


def first_of(seen: Observation) -> str:
    """The output to judge by: the first, or what a model of two towers makes of each before it compares them."""
    return next((name for name in seen.outputs if name.endswith("embeds")), next(iter(seen.outputs)))
