"""Which tensors of a checkpoint a weight was put together from, so that what becomes of it can be put under their names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mocomp.weights import recipes
from mocomp.weights.recipes import Cast, Concat, Recipe, Stack, Tensor


@dataclass(frozen=True)
class Place:
    """`tensor` [N', K] of a checkpoint is rows `start` to `stop` of a weight [N, K], or of those of `expert` in [E, N, K]."""

    tensor: str
    start: int
    stop: int
    expert: int | None = None

    def of(self, part: Recipe, rows: int) -> Recipe:
        """What a part of the weight [..., N', X] has for this place [n', X]; each of the N' stands for `rows` rows, or for all
        of them where it is 0."""
        if self.expert is not None:
            part = recipes.slice_of(part, 0, self.expert, self.expert + 1)
            part = recipes.reshape(part, part.shape[1:])
        return recipes.slice_of(part, 0, self.start // rows, -(-self.stop // rows)) if rows else part


def places(weight: Recipe) -> list[Place] | None:
    """The places of a weight [N, K], or [E, N, K] of experts that are stored one by one; None where it is anything else than
    whole matrices of the checkpoint, stacked and put below each other."""
    try:
        found = list(_places(weight, 0, None))
    except _Otherwise:
        return None
    return found if len({place.tensor for place in found}) == len(found) else None


class _Otherwise(Exception):
    """It is put together in another way."""


def _places(weight: Recipe, start: int, expert: int | None) -> Iterator[Place]:
    if isinstance(weight, Cast):
        yield from _places(weight.source, start, expert)
    elif isinstance(weight, Tensor) and len(weight.shape) == 2:
        yield Place(weight.name, start, start + weight.shape[0], expert)
    elif isinstance(weight, Stack) and weight.dim == 0 and expert is None:
        for i, part in enumerate(weight.parts):
            yield from _places(part, start, i)
    elif isinstance(weight, Concat) and weight.dim == len(weight.shape) - 2:
        for part in weight.parts:
            yield from _places(part, start, expert)
            start += part.shape[-2]
    else:
        raise _Otherwise
