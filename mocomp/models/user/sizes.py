"""Sizes of the dimensions that may change: those at which a module is traced, and others at which it is proven."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from mocomp.errors import BadInput, MocompError, Unsupported
from mocomp.models.user.likeness import Likeness
from mocomp.models.user.running import first_line, run
from mocomp.models.user.source import ModuleSource

PRIMES = (3, 5, 7, 11, 13, 17, 19)
LARGER = (2, 23, 29, 31, 37, 41, 43)
MOST = 6
"""Sizes that a module is proven at, besides those of the example."""
ENOUGH = 3
"""Where so many sizes of all dimensions together run, and each dimension has changed, no others are tried."""


@dataclass(frozen=True)
class Sized:
    """A size for each dimension that may change, by its name; nothing where none may."""

    name: str
    sizes: dict[str, int]


@dataclass
class Known:
    """Sizes that a module runs at, the example's first, and those that it refused, with the reason of the last."""

    runs: list[Sized]
    refused: list[str]
    reason: str = ""

    def notes(self) -> list[str]:
        """What was not proven, since the module does not run there."""
        fixed = [name for name in self.runs[0].sizes if len({sized.sizes[name] for sized in self.runs}) == 1]
        told = [f"the module does not run at {'; '.join(self.refused[:4])}: {self.reason}"] if self.refused else []
        return told + [f"{name} was seen at one size alone, {self.runs[0].sizes[name]}" for name in fixed]


def known_sizes(source: ModuleSource) -> Known:
    """The sizes at which a module is looked at. Raises BadInput where it does not run on its example, Unsupported where it runs
    at no other sizes though dimensions are said to change."""
    try:
        run(source, source.inputs)
    except MocompError:
        raise
    except Exception as error:
        raise BadInput(
            f"the module does not run on its example: {type(error).__name__}: {first_line(error)}",
            where=source.label,
            fix="Check names, shapes and types of the inputs; the whole message is in the log.",
        ) from error
    known = Known([Sized("the example", source.sizes)], [])
    if not source.sizes:
        return known
    for sizes in _candidates(known):
        _try(source, known, sizes)
    if len(known.runs) == 1:
        raise Unsupported(
            f"it runs at the sizes of the example alone: {known.reason}",
            where=source.label,
            fix=f"Leave out of --dynamic what cannot change: {', '.join(source.sizes)}.",
        )
    return known


def _try(source: ModuleSource, known: Known, sizes: dict[str, int]) -> None:
    told = ", ".join(f"{name} {size}" for name, size in sizes.items())
    if any(sized.sizes == sizes for sized in known.runs) or told in known.refused:
        return
    try:
        run(source, inputs_at(source, sizes, seed=0))
    except Exception as error:
        known.refused.append(told)
        known.reason = first_line(error)
        return
    known.runs.append(Sized(told, sizes))


def _candidates(known: Known) -> Iterator[dict[str, int]]:
    """First sizes of all dimensions together, then, where these do not do, of one at a time."""
    own = known.runs[0].sizes
    for series in ((1,) * len(own), PRIMES, LARGER):
        yield dict(zip(own, _endless(series), strict=False))
    for name, size in own.items():
        for other in (1, 3, 2 * size, 3 * size, 4 * size):
            changed = len({sized.sizes[name] for sized in known.runs})
            if len(known.runs) <= MOST and (len(known.runs) <= ENOUGH or changed <= 2):
                yield own | {name: other}


def _endless(series: tuple[int, ...]) -> Iterator[int]:
    yield from series
    number = series[-1]
    while True:
        number += 2 if number > 1 else 0
        yield number


def inputs_at(source: ModuleSource, sizes: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Inputs like the example, at these sizes; seeded."""
    from torch import from_numpy

    random = np.random.default_rng([seed, *sizes.values()])
    like = {name: Likeness.of(tensor.numpy()) for name, tensor in source.inputs.items()}
    return {name: from_numpy(np.asarray(one.draw(source.axes[name], sizes, random))) for name, one in like.items()}


def traced_at(source: ModuleSource, known: Known) -> dict[str, Tensor]:
    """The inputs to trace with: no size is 1, which a trace takes for a constant, and where it runs so, no two are alike.

    Raises Unsupported where a dimension is never but 1.
    """
    sizes = [sized.sizes for sized in known.runs]
    large = [own for own in sizes if all(size > 1 for size in own.values())]
    if not large:
        raise Unsupported("it runs only where some dimension is 1, which a trace takes for a constant", where=source.label)
    apart = [own for own in large if len(set(own.values())) == len(own)]
    chosen = (apart or large)[0]
    return source.inputs if chosen == source.sizes else inputs_at(source, chosen, seed=0)
