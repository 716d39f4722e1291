"""What algorithms make of the second moments of inputs, second [E, K, K]."""

from __future__ import annotations

import torch
from torch import Tensor

from mocomp.errors import BadInput

DAMPING = 0.01
"""GPTQ's: what is added to the diagonal, as a share of its mean."""
ATTEMPTS = 6
BLOCK = 64
"""Columns of the factor that LAPACK makes; more of them are left to matrix products, which are faster."""


def columns(second: Tensor, damping: float = DAMPING) -> Tensor:
    """[E, K], how much an error in each column counts, 1 on average and at least `damping`; that also where no token was."""
    return second.diagonal(dim1=-2, dim2=-1) / _mean(second)[:, None] + damping


def damped(second: Tensor, damping: float | Tensor = DAMPING) -> Tensor:
    """second in units of its mean diagonal, plus `damping`, a number or [E], on the diagonal.

    For an expert without tokens that is a multiple of the identity: all columns count alike, and none stands in for another.
    """
    result = second / _mean(second)[:, None, None]
    result.diagonal(dim1=-2, dim2=-1).add_(torch.as_tensor(damping, dtype=result.dtype, device=result.device).reshape(-1, 1))
    return result


def factor(second: Tensor, damping: float = DAMPING) -> Tensor:
    """U [E, K, K], lower triangular with a diagonal of 1, where damped(second) = U D U^T and D is diagonal.

    What is on and above the diagonal is left undefined. Experts whose moments are not positive definite in float32 are damped
    more. Raises BadInput where nothing helps.
    """
    share = second.new_full((len(second),), damping)
    failed = share > 0
    for _ in range(ATTEMPTS):
        lower = damped(second, share)
        failed = _factor(lower)
        if not failed.any():
            return lower
        share = torch.where(failed, 10 * share.clamp(min=DAMPING), share)
    raise BadInput(f"the moments of the inputs of experts {failed.nonzero().flatten().tolist()[:8]} are no numbers")


def _factor(matrix: Tensor) -> Tensor:
    """Replace what is below the diagonal of matrix [E, K, K] by U's, block of columns by block -> [E], where that failed."""
    failed = torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
    squares = matrix.new_empty(matrix.shape[:-1])  # the diagonal of D
    for start in range(0, matrix.shape[-1], BLOCK):
        panel = matrix[:, start:, start : start + BLOCK]
        width, before = panel.shape[-1], matrix[:, start:, :start]
        panel.baddbmm_(before, (before[:, :width] * squares[:, None, :start]).mT, alpha=-1)
        lower, info = torch.linalg.cholesky_ex(panel[:, :width])
        below = torch.linalg.solve_triangular(lower.mT, panel[:, width:], upper=True, left=False)
        diagonal = lower.diagonal(dim1=-2, dim2=-1)[:, None]
        torch.div(lower, diagonal, out=panel[:, :width])
        torch.div(below, diagonal, out=panel[:, width:])
        squares[:, start : start + width] = diagonal[:, 0].square()
        failed |= info > 0
    return failed


def _mean(second: Tensor) -> Tensor:
    mean = second.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(mean > 0, mean, 1.0)
