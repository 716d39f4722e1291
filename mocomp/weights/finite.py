"""Weights that are no numbers: a file that was damaged in its data looks whole, and one NaN in it spoils every output."""

from __future__ import annotations

import torch

SMALL = {torch.float8_e4m3fn: (0x7F, 0x7F), torch.float8_e5m2: (0x7F, 0x7C), torch.float8_e8m0fnu: (0xFF, 0xFF)}
"""Of types that torch cannot compare: the bits that matter, and from which value of them on it is no finite number."""


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether a contiguous tensor of any type has neither NaN nor infinity; runs at the speed of memory."""
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point:
        return True
    if tensor.dtype in SMALL:
        mask, least = SMALL[tensor.dtype]
        return int((tensor.view(-1).view(torch.uint8) & mask).max()) < least
    return all(bool(end.isfinite()) for end in tensor.aminmax())  # a NaN anywhere is both ends
