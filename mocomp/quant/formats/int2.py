"""Integers of 2 bits, per row or per block of columns, with or without a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mocomp.quant.integer import Integer


@dataclass(frozen=True)
class Int2(Integer):
    """Codes 0 to 3; 2 is zero where there is no zero point."""

    name: ClassVar[str] = "int2"
    bits: ClassVar[int] = 2
    centre: ClassVar[float] = 2.0
