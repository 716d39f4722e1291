"""Attention through the interface of transformers: one op, so keys and values are never repeated per query head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mocomp.errors import Unsupported
from mocomp.ir import ops  # noqa: F401  (registers mocomp::attention)

NAME = "mocomp"
HANDLED = {"s_aux", "softcap"}
IN_THE_MASK = {"sliding_window", "is_causal", "position_ids", "cache_position", "use_cache", "head_mask"}


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,  # the signature is the interface's
) -> tuple[Tensor, None]:
    """query [B, N, S, D], key [B, J, P, D], value [B, J, P, D'] -> ([B, S, N, D'], no weights)."""
    changes_numbers = {n for n, v in kwargs.items() if isinstance(v, Tensor) or "bias" in n} - HANDLED - IN_THE_MASK
    if changes_numbers:
        raise Unsupported(f"attention with {', '.join(sorted(changes_numbers))}", where=type(module).__name__)
    if attention_mask is None and getattr(module, "is_causal", False) and query.shape[2] > 1:
        raise Unsupported("causal attention without a mask", where=type(module).__name__)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    y = torch.ops.mocomp.attention(query, key, value, attention_mask, kwargs.get("s_aux"), scale, kwargs.get("softcap") or 0.0)
    return y, None


def register() -> None:
    """Tell transformers of the implementation; masks are those of its eager attention, so padding means the same."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, eager_mask)
