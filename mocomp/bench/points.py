"""The points of a benchmark: batch x sequence x past x modality mix, and which of them a kind of model is asked by default."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

from mocomp.errors import Usage

DECODE, PROMPTS, PAST = 1, (128, 512), 128
"""A generator is asked for one token after PAST others, and for prompts of these lengths."""
TEXTS, BATCHES = (16, 128), (1, 8)
"""An encoder is given texts of these lengths; it and a vision model are given batches."""

Mix = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Point:
    """B sequences of `sequence` new tokens after `past` cached ones; `mix` holds the share of each modality asked for."""

    batch: int
    sequence: int
    past: int = 0
    mix: Mix = ()
    images: bool = False

    @property
    def total(self) -> int:
        """Positions of a sequence, cached ones and new ones."""
        return self.past + self.sequence

    @property
    def tokens(self) -> int:
        """New tokens of all sequences, or images."""
        return self.batch * self.sequence

    @property
    def name(self) -> str:
        """What it is called: `1 token, past 128`."""
        if self.images:
            return f"{self.batch} image{'s' if self.batch > 1 else ''}"
        parts = [f"batch {self.batch}"] if self.batch > 1 else []
        parts.append(f"{self.sequence} token{'s' if self.sequence > 1 else ''}")
        parts += [f"past {self.past}"] if self.past else []
        return ", ".join([*parts, *(f"{name} {share:.0%}" for name, share in self.mix)])

    @property
    def measures(self) -> str:
        """What its time is to one who waits for a generator."""
        if self.sequence == 1 and self.past:
            return "time per token"
        return "" if self.past else "first token"

    def as_json(self) -> dict[str, Any]:
        """The keys that tell one point from another."""
        sizes = {"batch": self.batch, "sequence": self.sequence, "past": self.past}
        return {"workload": self.name} | sizes | {"mix": dict(self.mix) or None}


@dataclass(frozen=True)
class Wanted:
    """What the user asked for; what is empty is as the kind of model has it by default."""

    batches: tuple[int, ...] = ()
    sequences: tuple[int, ...] = ()
    pasts: tuple[int, ...] = ()
    mixes: tuple[Mix, ...] = ((),)


def grid(kind: str, longest: int | None, wanted: Wanted) -> tuple[list[Point], list[str]]:
    """The points for a generator, an encoder or a vision model that has `longest` positions, and notes on those left out.

    By default lengths are cut to the table of positions; those asked for that are longer are left out. Raises Usage when
    nothing is left, and for lengths or a past where a model has none.
    """
    if kind == "vision":
        if wanted.sequences or wanted.pasts:
            raise Usage("--sequence and --past are of tokens, and this model takes images", fix="Say --batch.")
        return [Point(batch, 1, images=True) for batch in wanted.batches or BATCHES], []
    if kind != "generator" and any(wanted.pasts):
        raise Usage("--past, and this model generates nothing", fix="Say --batch and --sequence.")
    batches = wanted.batches or ((1,) if kind == "generator" else BATCHES)
    asked = _asked(wanted) if wanted.sequences or wanted.pasts else _default(kind, longest)
    fits = [(sequence, past) for sequence, past in asked if longest is None or sequence + past <= longest]
    notes = [f"left out {s} tokens after {p}: the model has {longest} positions" for s, p in asked if (s, p) not in fits]
    if not fits:
        raise Usage(f"nothing to time: the model has {longest} positions", fix="Say a shorter --sequence or --past.")
    points = [Point(b, s, p, mix) for b, (s, p), mix in itertools.product(batches, fits, wanted.mixes or ((),))]
    return list(dict.fromkeys(points)), notes


def _asked(wanted: Wanted) -> list[tuple[int, int]]:
    return list(itertools.product(wanted.sequences or (DECODE,), wanted.pasts or (0,)))


def _default(kind: str, longest: int | None) -> list[tuple[int, int]]:
    """(sequence, past), cut to the table of positions."""
    end = longest if longest is not None else 1 << 30
    if kind != "generator":
        return list(dict.fromkeys((min(length, end), 0) for length in TEXTS))
    decode = (DECODE, max(min(PAST, end - DECODE), 0))
    return list(dict.fromkeys([decode, *((min(length, end), 0) for length in PROMPTS)]))
