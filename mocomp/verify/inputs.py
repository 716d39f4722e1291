"""Inputs on which an artifact is proven: lengths, batches and pasts other than the traced ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mocomp.models.interface import Interface


@dataclass(frozen=True)
class Case:
    """B sequences of `past` + `sequence` positions; `padding` of them, at the left of each sequence but one, are masked.

    Tokens before `past` are run first, in a call of their own, and reach the rest through the cache.
    """

    name: str
    batch: int
    sequence: int
    past: int = 0
    padding: int = 0

    @property
    def total(self) -> int:
        return self.past + self.sequence


GENERATOR = (
    Case("one token, no past", 1, 1),
    Case("one token, past 9", 1, 1, past=9),
    Case("prompt of 23", 1, 23),
    Case("batch of 3, padded", 3, 8, padding=3),
    Case("batch of 3, padded, one token with past", 3, 1, past=8, padding=3),
    Case("4 tokens with past 6", 2, 4, past=6),
    Case("prompt of 192", 1, 192),
)
ENCODER = (
    Case("one token", 1, 1),
    Case("sequence of 23", 1, 23),
    Case("batch of 3, padded", 3, 8, padding=3),
    Case("sequence of 48", 2, 48),
)
VISION = (Case("one image", 1, 1), Case("batch of 3", 3, 1))
CASES = {"generator": GENERATOR, "encoder": ENCODER, "vision": VISION}


def cases(interface: Interface, longest: int | None) -> list[Case]:
    """The cases for a kind of model, cut to its table of positions where they are longer."""
    found = CASES[interface.kind]
    if longest is None or interface.kind == "vision":
        return list(found)
    fits = [case for case in found if case.total <= longest]
    if len(fits) < len(found):
        fits.append(Case(f"{longest} positions, all there are", 1, longest))
    return fits


def arrays(interface: Interface, case: Case, seed: int) -> dict[str, np.ndarray]:
    """Seeded inputs of a case over all of its positions; the caller splits them at `past`.

    input_ids [B, total], attention_mask [B, total] with zeros at the left where padded, pixel_values [B, C, H, W].
    """
    random = np.random.default_rng([seed, case.batch, case.sequence, case.past, case.padding])
    made: dict[str, np.ndarray] = {}
    for name in interface.inputs:
        if name == "input_ids":
            made[name] = random.integers(0, interface.vocabulary, (case.batch, case.total))
        elif name == "attention_mask":
            made[name] = np.ones((case.batch, case.total), np.int64)
            for row in range(1, case.batch if case.padding else 0):
                made[name][row, : min(case.padding + row - 1, case.total - 1)] = 0
        elif name == "token_type_ids":
            made[name] = random.integers(0, 2, (case.batch, case.total))
        elif name == "pixel_values":
            made[name] = random.standard_normal((case.batch, *interface.image)).astype(np.float32)
    return made
