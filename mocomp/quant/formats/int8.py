"""Integers of 8 bits, per row or per block of columns, with or without a zero point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mocomp.quant.integer import Integer


@dataclass(frozen=True)
class Int8(Integer):
    """Codes 0 to 255; 128 is zero where there is no zero point."""

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8
    centre: ClassVar[float] = 128.0
