"""AWQ's scales (Lin et al. 2024): columns whose inputs are large are scaled up before rounding, and their inputs down.

w x = (w s) (x / s). What s is best is found by trying: `candidates` from the magnitude of inputs, `losses` of each. Both
leave it to the caller how many experts are at hand at once, and over what to sum: over experts that read the same input.
Dimension letters: A candidates, E experts, N rows, K columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mocomp.quant.algorithms import Moments
from mocomp.quant.formats import Format

STEPS = 20
FLOOR = 1e-3
"""What a magnitude is at least, as a share of the mean."""


def candidates(magnitude: Tensor, steps: int = STEPS) -> Tensor:
    """magnitude [..., K], the mean |x| -> s [A, ..., K]: its powers from 0 to 1, their largest times their least being 1.

    The first is all 1. A column without any input counts as the average one.
    """
    mean = magnitude.mean(-1, keepdim=True)
    known = torch.where(magnitude > 0, torch.maximum(magnitude, FLOOR * mean), mean)
    known = torch.where(known > 0, known, 1.0)
    powers = torch.linspace(0, 1, steps, device=magnitude.device).reshape(-1, *[1] * magnitude.ndim)
    scales = known**powers
    return scales / (scales.amax(-1, keepdim=True) * scales.amin(-1, keepdim=True)).sqrt()


def losses(w: Tensor, format: Format, moments: Moments, scales: Tensor) -> Tensor:
    """The squared error of outputs of w [E, N, K] rounded plainly after scaling: scales [A, K], of all experts -> [A];
    scales [A, E, K], of each expert -> [A, E]."""
    shared = scales.ndim == 2
    found = []
    for scale in scales:
        by_column = scale if shared else scale[:, None]
        scaled = w * by_column
        grid = format.fit(scaled)
        error = w - format.decode(format.encode(scaled, grid), grid) / by_column
        loss = ((error @ moments.second) * error).sum((-2, -1))
        found.append(loss.sum() if shared else loss)
    return torch.stack(found)


def balanced(moments: Moments, scale: Tensor) -> Moments:
    """Those of inputs divided by scale [K] or [E, K]."""
    second = moments.second / (scale[..., :, None] * scale[..., None, :])
    return Moments(second, moments.magnitude / scale, moments.tokens)
