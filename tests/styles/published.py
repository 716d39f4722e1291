"""Blocks of packages that are installed: lucidrains' mixture-of-experts, st-moe-pytorch and soft-moe-pytorch."""

from __future__ import annotations

import warnings
from typing import Any

import mixture_of_experts
import soft_moe_pytorch
from torch import nn

with warnings.catch_warnings():  # of beartype, about how st-moe-pytorch spells its types
    warnings.simplefilter("ignore")
    import st_moe_pytorch


def lucidrains(hidden: int, experts: int, **options: Any) -> nn.Module:
    """Top-2 with the second expert by `second_policy_eval`; forward gives (y, loss)."""
    return mixture_of_experts.MoE(hidden, num_experts=experts, hidden_dim=2 * hidden, **options)


def lucidrains_hierarchical(hidden: int, outer: int, inner: int, **options: Any) -> nn.Module:
    """Two levels of top-2, experts [outer, inner]."""
    return mixture_of_experts.HeirarchicalMoE(hidden, num_experts=(outer, inner), hidden_dim=2 * hidden, **options)


def st_moe(hidden: int, experts: int, **options: Any) -> Any:
    """Top-n with capacity per sequence; GEGLU experts whose gate is the second half, with a bias that multiplies."""
    return st_moe_pytorch.MoE(dim=hidden, num_experts=experts, expert_hidden_mult=2, **options)


def st_moe_block(moe: Any) -> nn.Module:
    """The block of that package: a norm, the mixture, and a dense feed-forward before and after."""
    return st_moe_pytorch.SparseMoEBlock(moe, add_ff_before=True, add_ff_after=True)


def soft_moe(hidden: int, experts: int, slots: int, geglu: bool) -> nn.Module:
    """Soft slots: every slot is a mean of all tokens of its sequence."""
    return soft_moe_pytorch.SoftMoE(hidden, num_experts=experts, num_slots=slots, expert_mult=2, geglu=geglu)
