"""Memory that was let go, given back to the system."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Has the C library return what it holds for later, where it can be told to: glibc keeps what threads freed in pools of
    their own, and a layer's weights would stay there."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
