"""What algorithms make of the second moments of inputs, second [E, K, K]."""

from __future__ import annotations

import torch
from torch import Tensor

from mocomp.errors import BadInput

DAMPING = 0.01
"""GPTQ's: what is added to the diagonal, as a share of its mean."""
ATTEMPTS = 6


def columns(second: Tensor, damping: float = DAMPING) -> Tensor:
    """[E, K], how much an error in each column counts, 1 on average and at least `damping`; that also where no token was."""
    return second.diagonal(dim1=-2, dim2=-1) / _mean(second)[:, None] + damping


def damped(second: Tensor, damping: float = DAMPING) -> Tensor:
    """second in units of its mean diagonal, plus `damping` on the diagonal.

    For an expert without tokens that is a multiple of the identity: all columns count alike, and none stands in for another.
    """
    result = second / _mean(second)[:, None, None]
    result.diagonal(dim1=-2, dim2=-1).add_(damping)
    return result


def factor(second: Tensor, damping: float = DAMPING) -> Tensor:
    """Cholesky's L [E, K, K] of damped(second) = L L^T, lower triangular.

    More is added to the diagonals of experts whose moments are not positive definite in float32 as they are. Raises BadInput
    where nothing helps.
    """
    matrix = damped(second, damping)
    for attempt in range(ATTEMPTS):
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if not failed.any():
            return lower
        more = DAMPING * 10**attempt * (failed > 0)
        matrix.diagonal(dim1=-2, dim2=-1).add_(more[:, None])
    raise BadInput(f"the moments of the inputs of experts {failed.nonzero().flatten().tolist()[:8]} are no numbers")


def _mean(second: Tensor) -> Tensor:
    mean = second.diagonal(dim1=-2, dim2=-1).mean(-1)
    return torch.where(mean > 0, mean, 1.0)
