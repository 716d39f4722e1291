"""AWQ's scales put into a layer: large inputs scaled down, and the weights that they meet up, before these are rounded.

What comes into w_in is the same for all experts of a layer, so it is scaled once, by [H]. What comes into w_out is made by
each expert's up rows, which take the scales [F] into themselves, at no cost when the model runs.
Dimension letters: E experts, H hidden, F expert width, A candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from mocomp.calibration.tokens import Bank, Routed, moments_in, moments_out
from mocomp.quant.algorithms import Moments
from mocomp.quant.balancing import candidates, losses
from mocomp.quant.formats import Format


def scales_of_inputs(banks: Iterable[Bank], routed: Routed, form: Format, few: dict[int, str]) -> Tensor:
    """What w_in's columns are best scaled by, for all experts together -> [H]."""
    scales = candidates(routed.x[routed.learned].abs().mean(0))
    total = torch.zeros(len(scales))
    for bank in banks:
        total += losses(bank.w_in, form, moments_in(bank, routed, few), scales)
    return scales[total.argmin()]


def scales_of(w: Tensor, moments: Moments, form: Format) -> Tensor:
    """The same for a weight alone, w [1, N, K] -> [K]."""
    scales = candidates(moments.magnitude[0])
    return scales[losses(w, form, moments, scales).argmin()]


def folded(bank: Bank, routed: Routed, form: Format, few: dict[int, str]) -> Bank:
    """w_out's columns scaled by what is best for each expert, and w_in's up rows by its inverse; the same function."""
    if not bank.kind.linear_in_up or bank.b_in is not None:
        return bank
    seen = moments_out(bank, routed, few)
    scales = candidates(seen.magnitude)
    best = losses(bank.w_out, form, seen, scales).argmin(0)
    scale = scales[best, torch.arange(len(bank))]
    gate, up = bank.w_in.chunk(2, 1)
    return replace(bank, w_in=torch.cat([gate, up / scale[..., None]], 1), w_out=bank.w_out * scale[:, None])
