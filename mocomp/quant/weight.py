"""A weight of a program that is stored in a format: what the passes and targets need to know of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mocomp.quant.formats import Format, parse
from mocomp.weights.recipes import Recipe, Tensor


@dataclass(frozen=True)
class QuantisedWeight:
    """`parts` by name, in the order of `Format.shapes`; `columns` is K. `inputs` [K], where there are any, are what x is
    multiplied by before it meets the weight (AWQ's scales, inverted)."""

    format: str
    columns: int
    parts: dict[str, Recipe]
    inputs: Recipe | None = None

    @property
    def form(self) -> Format:
        return parse(self.format)

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return sum(part.nbytes for part in self.parts.values()) + (self.inputs.nbytes if self.inputs is not None else 0)


def promised(name: str, shape: tuple[int, ...], form: Format, balanced: bool = False) -> QuantisedWeight:
    """A weight of `shape` that will be found in its format under `name` followed by the part, once it is quantised.

    The inputs of `balanced` ones are scaled.
    """
    parts: dict[str, Recipe] = {
        part: Tensor(size, dtype, f"{name}.{part}") for part, (size, dtype) in form.shapes(shape).items()
    }
    inputs = Tensor(shape[-1:], torch.float32, f"{name}.inputs") if balanced else None
    return QuantisedWeight(form.text, shape[-1], parts, inputs)
