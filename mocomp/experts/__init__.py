"""Kinds of experts: each file is what one expert does to a token, in traceable torch ops.

To add one, add a file with a frozen dataclass derived from `Expert`. `guesses` lists the parameters under which an
experts module might be of this kind; `models/canonical.py` proves or refuses each by running both.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

ACTIVATIONS = {
    "silu": torch.nn.functional.silu,
    "gelu": torch.nn.functional.gelu,
    "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "relu": torch.nn.functional.relu,
    "relu2": lambda x: torch.square(torch.nn.functional.relu(x)),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "identity": lambda x: x,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}
"""By name. `identity` is what linear experts have (Jordan 1994) and adapters of low rank (MoLoRA 2023: B A x), `sigmoid` the
gate of the first gated units (Dauphin 2017), `relu2` is the square of relu (Primer 2021)."""


@dataclass(frozen=True)
class Expert(ABC):
    """A kind of expert with its parameters: `inner` is what happens between the two products."""

    name: ClassVar[str] = ""
    gated: ClassVar[bool] = False
    activation: str = "silu"

    @property
    def linear_in_up(self) -> bool:
        """Whether what comes into w_out is so many times larger as the up rows of w_in are made."""
        return False

    @abstractmethod
    def inner(self, h: torch.Tensor, axis: int = -1) -> torch.Tensor:
        """h [..., F or 2F] (gate, then up) -> [..., F], where the dimension `axis` may be another than the last."""

    @classmethod
    @abstractmethod
    def guesses(cls, numbers: dict[str, Any]) -> Iterator[Expert]:
        """Parameters that a module with these numeric attributes might have, the likeliest first."""

    def mixture(
        self,
        x: torch.Tensor,
        ids: torch.Tensor,
        weights: torch.Tensor,
        w_in: torch.Tensor,
        b_in: torch.Tensor | None,
        w_out: torch.Tensor,
        b_out: torch.Tensor | None,
    ) -> torch.Tensor:
        """The mixture as its definition reads, every expert on every token: x [T, H] -> y [T, H].

        What an expert gives to a token that did not choose it, or chose it with weight 0, is left out and not multiplied
        by 0, so it may even be NaN.
        """
        h_ETF = torch.einsum("th,efh->etf", x, w_in)
        h_ETF = h_ETF if b_in is None else h_ETF + b_in[:, None]
        y_ETH = torch.einsum("etf,ehf->eth", self.inner(h_ETF), w_out)
        y_ETH = y_ETH if b_out is None else y_ETH + b_out[:, None]
        share_TE = x.new_zeros(x.shape[0], w_in.shape[0]).scatter_add(1, ids, weights)
        share_ET1 = share_TE.T[..., None]
        return torch.where(share_ET1 != 0, share_ET1 * y_ETH, 0.0).sum(0)
