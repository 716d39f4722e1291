"""Codes in the layouts of other tools, as recipes: 32-bit words, along rows or along columns, made into rows of bytes.

Dimension letters: N rows (outputs), K columns (inputs), W words, A any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from mocomp.quant.formats import pack_bits, unpack_bits
from mocomp.weights.recipes import Need, Reader, Recipe


@dataclass(frozen=True, eq=False)
class Rowwise(Recipe):
    """A function of the source that makes every row from that row alone; type and further dimensions may change."""

    function: Callable[[torch.Tensor], torch.Tensor]
    source: Recipe

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        return self.function(self.source.rows(read, start, stop))

    def needs(self, start: int, stop: int) -> Iterator[Need]:
        yield self.source, start, stop


@dataclass(frozen=True, eq=False)
class FromColumns(Recipe):
    """A function that makes `per` rows from each column of the source [A, W]; it is given some columns [A, w].

    The source is read whole whatever rows are asked for, as a checkpoint cannot be read by columns; what is made of it is
    made for those rows alone.
    """

    function: Callable[[torch.Tensor], torch.Tensor]
    source: Recipe
    per: int

    def rows(self, read: Reader, start: int, stop: int) -> torch.Tensor:
        first, last = start // self.per, -(-stop // self.per)
        columns = self.source.evaluate(read)[:, first:last]
        return self.function(columns)[start - first * self.per : stop - first * self.per]


def rowwise(source: Recipe, function: Callable[[torch.Tensor], torch.Tensor]) -> Recipe:
    """function(source), row by row."""
    made = function(torch.empty(source.shape, dtype=source.dtype, device="meta"))
    return Rowwise(tuple(made.shape), made.dtype, function, source)


def from_columns(
    source: Recipe, function: Callable[[torch.Tensor], torch.Tensor], per: int = 1, rows: int | None = None
) -> Recipe:
    """function(source), `per` rows from each column; `rows` leaves out those after them, which fill the last word up."""
    made = function(torch.empty(source.shape, dtype=source.dtype, device="meta"))
    return FromColumns((rows or made.shape[0], *made.shape[1:]), made.dtype, function, source, per)


def bytes_of(words: torch.Tensor) -> torch.Tensor:
    """words [..., W] int32 -> [..., 4 W] uint8, lowest byte first: where codes fill words from the lowest bits on, these
    are bytes that codes fill from the lowest bits on."""
    return words.contiguous().view(torch.uint8)


def unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """words [..., W] int32 -> the codes in them [..., W * 32 / bits] uint8, the lowest bits first."""
    return unpack_bits(bytes_of(words), bits, words.shape[-1] * 32 // bits)


def turned(words: torch.Tensor, bits: int, more: int = 0) -> torch.Tensor:
    """words [A, w] int32 -> the codes in them, column by column [w * 32 / bits, bytes of A codes] uint8; each of them `more`
    than is stored, where what passes the largest code begins again at 0."""
    codes = (unpack_words(words, bits) + more) & ((1 << bits) - 1)
    return pack_bits(codes.t(), bits)


def in_order(packed: torch.Tensor, bits: int, order: torch.Tensor) -> torch.Tensor:
    """packed [N, bytes of K codes] -> the same with the columns in another order [K]."""
    return pack_bits(unpack_bits(packed, bits, len(order))[:, order], bits)
