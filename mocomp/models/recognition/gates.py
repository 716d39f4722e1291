"""Factors that a block computes for each token with a submodule of its own, such as the sigmoid gate of a shared expert.

Dimension letters: T tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mocomp.models.recognition.candidates import ExpertSet

MOST_COLUMNS = 4
"""Columns of a softmax that may be factors: two in a residual mixture (DeepSpeed-MoE 2022)."""


@dataclass(frozen=True)
class Gate:
    """What `module` gives for x: as it is, through a sigmoid, or a column of its softmax."""

    module: str
    form: str = "plain"
    column: int = 0

    def value(self, block: nn.Module, x: Tensor) -> Tensor:
        """x [.., H] -> [.., 1], or [.., H] where the module gives as much; traceable."""
        return self.of(block.get_submodule(self.module)(x))

    def of(self, given: Tensor) -> Tensor:
        """The same from what the module gives."""
        if self.form == "softmax":
            return torch.softmax(given, -1)[..., self.column : self.column + 1]
        return torch.sigmoid(given) if self.form == "sigmoid" else given


def given_by_parts(block: nn.Module, experts: ExpertSet, x: Tensor) -> dict[str, Tensor]:
    """What each submodule that is no part of the experts gives when it is called with x [.., H], by name."""
    found: dict[str, Tensor] = {}
    for name, child in block.named_modules():
        if not name or name == experts.holder or experts.owns(name):
            continue
        try:
            made = child(x)
        except Exception:  # not for hidden states
            continue
        if isinstance(made, Tensor) and made.shape[:-1] == x.shape[:-1]:
            found[name] = made
    return found


def gates(given: dict[str, Tensor], x: Tensor) -> Iterator[Gate]:
    """Every factor that parts of a block may be, one number for each token before others."""
    for name, made in given.items():
        if made.shape[-1] == 1:
            yield from (Gate(name, "sigmoid"), Gate(name))
        elif made.shape[-1] <= MOST_COLUMNS:
            yield from (Gate(name, "softmax", column) for column in range(made.shape[-1]))
    yield from (Gate(name, "sigmoid") for name, made in given.items() if made.shape == x.shape)
