"""Inputs on which an artifact is proven: lengths, batches and pasts other than the traced ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mocomp.errors import Usage
from mocomp.models.interface import Interface, is_per_token
from mocomp.plans.plan import ModelPlan


@dataclass(frozen=True)
class Case:
    """B sequences of `past` + `sequence` positions; `padding` of them, in each sequence but one, are masked.

    Padding stands where people put it: at the left where tokens are generated, at the right where text is encoded.
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


@dataclass(frozen=True)
class Drawn:
    """Inputs that are not just any: `words` says of which tokens they are, for a claim that is made of those alone.

    `values` holds, per input of integers, those that it is drawn from; `longest` how many positions there are.
    """

    words: str
    values: Mapping[str, np.ndarray] = field(default_factory=dict)
    longest: int | None = None


def longest_of(config: Any, drawn: Drawn | None) -> int | None:
    """The positions that a model has and that inputs may take, None when there is no end to them."""
    ends = [getattr(config.get_text_config(), "max_position_embeddings", None), drawn.longest if drawn is not None else None]
    return min((end for end in ends if end is not None), default=None)


def with_modality(plan: ModelPlan | None) -> Drawn | None:
    """Tokens that have a modality, for a model that refuses others; None for one that takes any."""
    modality = plan.modality if plan is not None else None
    if modality is None or modality.otherwise or not modality.per_token:
        return None
    keys = np.array(sorted(i for ranges in modality.ranges for start, stop in ranges for i in range(start, stop + 1)))
    if modality.input is not None:
        return Drawn("tokens that have a modality", {modality.input: keys})
    gaps = np.flatnonzero(keys != np.arange(len(keys)))
    return Drawn("positions that have a modality", longest=int(gaps[0]) if len(gaps) else len(keys))


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


Takes = Callable[[int, int, int], bool]
"""Whether a model runs a call of so many (sequences, tokens of each, positions before them)."""


def cases(interface: Interface, longest: int | None, takes: Takes | None = None) -> list[Case]:
    """The cases for a kind of model, cut to its table of positions where they are longer, and to the calls that it `takes`.

    Raises Usage where none is left.
    """
    found = [*CASES[interface.kind]]
    if longest is not None and interface.kind != "vision":
        fits = [case for case in found if case.total <= longest]
        found = fits if len(fits) == len(found) else [*fits, Case(f"{longest} positions, all there are", 1, longest)]
    kept = [case for case in found if takes is None or _runs(case, takes)]
    if not kept:
        raise Usage(
            "no profile takes a call that parity makes", fix="Give a --profile of a batch and a sequence that begin at 1."
        )
    return kept


def left_out(wanted: list[Case], run: list[Case]) -> list[str]:
    """A note on those cases of a model that its artifact was not made for, if there are any."""
    names = [case.name for case in wanted if case not in run]
    return [f"not proven, since it was not made for these sizes: {'; '.join(names)}"] if names else []


def _runs(case: Case, takes: Takes) -> bool:
    """Whether both calls of a case are taken: that for what is past, and that for the rest."""
    return takes(case.batch, case.sequence, case.past) and (not case.past or takes(case.batch, case.past, 0))


def arrays(interface: Interface, case: Case, seed: int, drawn: Drawn | None = None) -> dict[str, np.ndarray]:
    """Seeded inputs of a case over all of its positions; the caller splits them at `past`.

    input_ids [B, total], attention_mask [B, total] with zeros where padded, pixel_values [B, C, H, W], one more of them where
    they are numbered apart from the texts.
    """
    random = np.random.default_rng([seed, case.batch, case.sequence, case.past, case.padding])
    made: dict[str, np.ndarray] = {}
    values = {} if drawn is None else drawn.values
    for name in interface.inputs:
        if name in interface.added:  # drawn apart, so that the others are what they are without it
            allowed = values.get(name, np.arange(interface.added[name]))
            apart = np.random.default_rng([seed, case.batch, case.total])
            made[name] = allowed[apart.integers(0, len(allowed), (case.batch, case.total))]
        elif name in values:
            made[name] = values[name][random.integers(0, len(values[name]), (case.batch, case.total))]
        elif name == "input_ids":
            made[name] = random.integers(0, interface.vocabulary, (case.batch, case.total))
        elif name == "attention_mask":
            made[name] = np.ones((case.batch, case.total), np.int64)
            for row in range(1, case.batch if case.padding else 0):
                padding = min(case.padding + row - 1, case.total - 1)
                made[name][row, slice(padding) if interface.kind == "generator" else slice(case.total - padding, None)] = 0
        elif is_per_token(name):
            made[name] = random.integers(0, 2, (case.batch, case.total))
        elif name == "pixel_values":
            made[name] = random.standard_normal((case.batch + interface.more_images, *interface.image)).astype(np.float32)
    return made
