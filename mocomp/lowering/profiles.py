"""Optimisation profiles: the sizes that an engine is built for, each as least..typical..most.

A text such as `prefill:batch=1..4,sequence=1..512..4096` names the profile and says its dimensions: one number, least..most
(typical is the most), or all three. What it leaves out is 1, and 0 for the past. `total` is never said: it is the past and
the sequence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from mocomp.errors import Usage

BATCH, PAST, SEQUENCE, TOTAL = "batch", "past", "sequence", "total"
LONGEST = 4096
"""Positions of the profiles that are made where none are said, for models that have more, or no end."""
TYPICAL = 512

Range = tuple[int, int, int]
"""(least, typical, most)."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """The range of each dimension by its name, `total` among them where the model has it."""

    name: str
    ranges: Mapping[str, Range]

    @property
    def text(self) -> str:
        """As it would be said on the command line."""
        said = [f"{name}={_said(sizes)}" for name, sizes in self.ranges.items() if name != TOTAL]
        return f"{self.name}:{','.join(said)}"

    @property
    def tokens(self) -> int:
        """The most tokens of one call."""
        return self.most(BATCH) * self.most(SEQUENCE)

    def most(self, name: str) -> int:
        """The largest size of a dimension; 1 for one that the model has not."""
        return self.ranges[name][2] if name in self.ranges else 1

    def least(self, name: str) -> int:
        """The smallest size of a dimension; 1 for one that the model has not."""
        return self.ranges[name][0] if name in self.ranges else 1

    def takes(self, sizes: Mapping[str, int]) -> bool:
        """Whether a call of these sizes is within it."""
        return all(self.ranges[name][0] <= size <= self.ranges[name][2] for name, size in sizes.items())

    def shapes(self, dims: Mapping[str, Sequence[int | str]]) -> dict[str, tuple[Shape, Shape, Shape]]:
        """(least, typical, most) shape of each input, given what its dimensions are called, or how large they are."""
        return {name: (self._at(shape, 0), self._at(shape, 1), self._at(shape, 2)) for name, shape in dims.items()}

    def _at(self, dims: Sequence[int | str], which: int) -> Shape:
        return tuple(self.ranges[dim][which] if isinstance(dim, str) else dim for dim in dims)


def profiles_for(texts: Iterable[str], names: Iterable[str], longest: int = 0) -> list[Profile]:
    """The profiles that `texts` ask for, of a model whose dimensions have these names and that has `longest` positions.

    Where none are asked for: a prefill and a decode profile of one sequence for a model with a past, else one profile.
    Raises Usage for texts that are none, for names that the model has not, for two profiles of one name and for sizes that
    it has not.
    """
    known = [*dict.fromkeys(names)]
    end = min(longest or LONGEST, LONGEST)
    made = [_parse(text, known) for text in texts] or _usual(known, end)
    twice = [profile.name for i, profile in enumerate(made) if profile.name in [other.name for other in made[:i]]]
    if twice:
        raise Usage(f"two profiles are called {twice[0]}", fix="Give each its own name.")
    for profile in made:
        if longest and profile.most(TOTAL if TOTAL in known else SEQUENCE) > longest:
            raise Usage(f"--profile {profile.text!r} has more than the {longest} positions of the model")
    return made


def sizes_of(dims: Mapping[str, Sequence[int | str]], shapes: Mapping[str, Shape]) -> dict[str, int]:
    """The size of each named dimension, by what the inputs of a call have there."""
    return {
        dim: size for name, names in dims.items() for dim, size in zip(names, shapes[name], strict=True) if isinstance(dim, str)
    }


def dims_of(values: Iterable[ir.Value]) -> dict[str, list[int | str]]:
    """What the dimensions of each value are called, or how large they are."""
    return {str(value.name): [dim if isinstance(dim, int) else str(dim.value) for dim in value.shape or ()] for value in values}


def _said(sizes: Range) -> str:
    return str(sizes[0]) if sizes[0] == sizes[2] else "..".join(map(str, sizes))


def _usual(known: list[str], end: int) -> list[Profile]:
    one = dict.fromkeys(known, (1, 1, 1))
    many = one | ({SEQUENCE: (1, min(TYPICAL, end), end)} if SEQUENCE in known else {})
    if PAST not in known:
        return [_whole("all", many, known)]
    decode = one | {PAST: (0, (end - 1) // 2, end - 1)}
    return [_whole("prefill", many | {PAST: (0, 0, 0)}, known), _whole("decode", decode, known)]


def _parse(text: str, known: list[str]) -> Profile:
    name, colon, rest = text.partition(":")
    if not colon or not re.fullmatch(r"\w+", name):
        raise _wrong(text, "it has no name")
    ranges = {dim: (0, 0, 0) if dim == PAST else (1, 1, 1) for dim in known}
    said: list[str] = []
    for part in rest.split(","):
        dim, _, sizes = part.strip().partition("=")
        if dim == TOTAL:
            raise _wrong(text, "total is past and sequence, and not said")
        if dim not in known or dim in said:
            others = ", ".join(name for name in known if name != TOTAL)
            raise _wrong(text, f"{dim!r} is said twice" if dim in said else f"no dimension {dim!r}; they are {others}")
        said.append(dim)
        ranges[dim] = _range(text, dim, sizes)
    return _whole(name, ranges, known)


def _range(text: str, dim: str, sizes: str) -> Range:
    parts = sizes.split("..")
    if not all(re.fullmatch(r"[0-9]{1,9}", part) for part in parts) or len(parts) > 3:
        raise _wrong(text, f"{sizes!r} is no size")
    least, *typical, most = [int(part) for part in parts] if len(parts) > 1 else [int(parts[0])] * 2
    found = least, typical[0] if typical else most, most
    if not found[0] <= found[1] <= found[2]:
        raise _wrong(text, f"{dim} is not least..typical..most")
    if least < 1 and dim != PAST:
        raise _wrong(text, f"{dim} is at least 1")
    return found


def _whole(name: str, ranges: Mapping[str, Range], known: list[str]) -> Profile:
    if TOTAL not in known:
        return Profile(name, dict(ranges))
    past, sequence = ranges[PAST], ranges[SEQUENCE]
    total = (past[0] + sequence[0], past[1] + sequence[1], past[2] + sequence[2])
    return Profile(name, {**ranges, TOTAL: total})


def _wrong(text: str, why: str) -> Usage:
    return Usage(f"--profile {text!r}: {why}", fix="Such as prefill:batch=1..4,sequence=1..512..4096.")
