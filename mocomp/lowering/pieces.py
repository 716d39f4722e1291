"""A call cut into calls that an engine was built for.

Sequences of a batch do not see each other, and a model with a cache gives the same for many tokens at once as for one after
the other. So whatever the profiles are, every call can be run that they have a part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from mocomp.errors import Usage
from mocomp.lowering.profiles import BATCH, PAST, SEQUENCE, TOTAL, Profile, sizes_of

Arrays = dict[str, np.ndarray]
Dims = Mapping[str, Sequence[int | str]]


def positions(profiles: Sequence[Profile]) -> int:
    """How long a prompt of one sequence may be so that each that is no longer can be run, whole or one token after the other;
    0 is that there is no such length. What a profile takes whole may be too long to go on from: `takes` says that."""
    single = [profile for profile in profiles if profile.least(BATCH) == 1 and profile.least(SEQUENCE) == 1]
    steps = sorted((profile.least(PAST), profile.most(PAST)) for profile in single if PAST in profile.ranges)
    reach = 0
    for least, most in steps:
        if least <= reach:
            reach = max(reach, most + 1)
    wholes = [profile.most(SEQUENCE) for profile in single if PAST not in profile.ranges or profile.least(PAST) == 0]
    return max([reach, *wholes])


def takes(profiles: Sequence[Profile], batch: int, sequence: int, past: int) -> bool:
    """Whether `Pieces` can run a call of these sizes: whole, sequence by sequence, or one token after the other."""

    def whole(batch: int, sequence: int, past: int) -> bool:
        sizes = {BATCH: batch, SEQUENCE: sequence, PAST: past, TOTAL: past + sequence}
        return any(p.takes({name: size for name, size in sizes.items() if name in p.ranges}) for p in profiles)

    if whole(batch, sequence, past) or (batch > 1 and takes(profiles, 1, sequence, past)):
        return True
    cached = any(PAST in profile.ranges for profile in profiles)
    return batch == 1 and cached and sequence > 1 and all(whole(1, 1, past + i) for i in range(sequence))


class Pieces:
    """Runs calls of any sizes through `run`, which is given those that a profile takes, and its index.

    `dims` are the names of the dimensions of all inputs and outputs; `past` says by which output the next piece is given
    each input that holds a cache.
    """

    def __init__(self, profiles: Sequence[Profile], dims: Dims, past: Mapping[str, str], run: Callable[[int, Arrays], Arrays]):
        self.profiles, self.dims, self.past, self.run_one = profiles, dims, past, run

    def run(self, inputs: Arrays) -> Arrays:
        """All outputs by name. Raises Usage for a call that no profile has a part of."""
        if (index := self._index(inputs)) is not None:
            return self.run_one(index, inputs)
        if self._sizes(inputs).get(BATCH, 1) > 1:
            rows = [self.run(row) for row in self._split(inputs, BATCH)]
            return {name: np.concatenate([row[name] for row in rows], self._axis(name, BATCH)) for name in rows[0]}
        return self._in_turn(inputs)

    def _in_turn(self, inputs: Arrays) -> Arrays:
        """One token after the other, each with the cache that the one before it left."""
        sizes = self._sizes(inputs)
        if not self.past or sizes.get(SEQUENCE, 1) == 1:
            raise Usage(
                f"no profile takes {', '.join(f'{name} {size}' for name, size in sizes.items())}; "
                f"there are {' and '.join(profile.text for profile in self.profiles)}",
                fix="Build with a --profile that does.",
            )
        made: list[Arrays] = []
        for i, token in enumerate(self._split(inputs, SEQUENCE)):
            masks = {name: inputs[name][:, : sizes[PAST] + i + 1] for name in inputs if TOTAL in self.dims[name]}
            cache = {name: made[-1][output] for name, output in self.past.items()} if made else {}
            made.append(self.run(token | masks | cache))
        joined = {name: self._joined(name, [step[name] for step in made]) for name in made[0]}
        return joined

    def _joined(self, name: str, parts: list[np.ndarray]) -> np.ndarray:
        """What each token gave, one after the other; of a cache, and of what says nothing of tokens, the last."""
        if name in self.past.values():
            return parts[-1]
        dims = self.dims.get(name)
        if dims is None:  # an inner value: of tokens [T, ...]
            return np.concatenate(parts)
        return np.concatenate(parts, list(dims).index(SEQUENCE)) if SEQUENCE in dims else parts[-1]

    def _split(self, inputs: Arrays, dim: str) -> Iterator[Arrays]:
        for i in range(self._sizes(inputs)[dim]):
            yield {
                name: array.take([i], list(self.dims[name]).index(dim)) if dim in self.dims[name] else array
                for name, array in inputs.items()
            }

    def _axis(self, name: str, dim: str) -> int:
        return list(self.dims[name]).index(dim) if dim in self.dims.get(name, ()) else 0

    def _index(self, inputs: Arrays) -> int | None:
        """The first profile, by how few tokens it is for, that takes a call."""
        sizes = self._sizes(inputs)
        fitting = [i for i, profile in enumerate(self.profiles) if profile.takes(sizes)]
        return min(fitting, key=lambda i: self.profiles[i].tokens, default=None)

    def _sizes(self, inputs: Arrays) -> dict[str, int]:
        return sizes_of({name: self.dims[name] for name in inputs}, {name: array.shape for name, array in inputs.items()})
