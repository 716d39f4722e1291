"""Integers of 4 bits, per row or per block of columns, with or without a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mocomp.quant.integer import Integer


@dataclass(frozen=True)
class Int4(Integer):
    """Codes 0 to 15; 8 is zero where there is no zero point."""

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4
    centre: ClassVar[float] = 8.0
