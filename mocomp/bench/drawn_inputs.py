"""Inputs of a point, with the modalities of its tokens in the shares that were asked for."""

from __future__ import annotations

import numpy as np
import torch

from mocomp.bench.points import Mix, Point
from mocomp.errors import Usage
from mocomp.models.interface import Interface
from mocomp.plans.modality import IDS, Modality
from mocomp.targets import Arrays
from mocomp.verify.inputs import Case, Drawn, arrays


def keys_of(modality: Modality, interface: Interface) -> dict[str, np.ndarray]:
    """The values of the modality's input that are of each modality.

    Raises Usage where modalities are told by something that no input can be drawn for.
    """
    if modality.input is None or modality.input not in interface.inputs:
        raise Usage(f"--mix, and the modality of a token is told by {modality.key}", fix="Mixes are of ids or of an input.")
    size = interface.vocabulary if modality.input == IDS else interface.added.get(modality.input, modality.values())
    owner = modality.of(torch.arange(size)).numpy()
    return {name: np.flatnonzero(owner == i) for i, name in enumerate(modality.names)}


def even(modality: Modality | None) -> tuple[Mix, ...]:
    """What is drawn by default: equal shares of all modalities, where inputs tell them apart."""
    if modality is None or modality.input is None:
        return ((),)
    return (tuple((name, 1 / len(modality.names)) for name in modality.names),)


def mix_from(text: str) -> Mix:
    """`text=0.5,image=0.5` as shares that sum to 1. Raises Usage for what is none."""
    shares = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name] = float(share)
        except ValueError:
            shares[name] = float("nan")
    if not all(name and 0 <= share <= 1 for name, share in shares.items()) or abs(sum(shares.values()) - 1) > 0.01:
        raise Usage(f"--mix {text!r}", fix="Say the share of each modality, 1 in all: --mix text=0.5,image=0.5")
    return tuple((name, share) for name, share in shares.items() if share)


def owners(mix: Mix, batch: int, total: int) -> np.ndarray:
    """Which modality of the mix a token is of: [B, total] int64, in every stretch of positions as near the shares as can be.

    Sequences are one position apart, so that a batch of single tokens is mixed as well.
    """
    shares = np.array([share for _, share in mix])
    given, line = np.zeros(len(mix)), np.zeros(batch + total, np.int64)
    for position in range(batch + total):
        line[position] = int(np.argmax(shares * (position + 1) - given))
        given[line[position]] += 1
    return np.stack([line[row : row + total] for row in range(batch)])


def inputs_of(
    interface: Interface, point: Point, seed: int, drawn: Drawn | None = None, modality: Modality | None = None
) -> Arrays:
    """Seeded inputs over all positions of a point; the caller splits them at `past`. Raises Usage for a modality of no name."""
    given = arrays(interface, Case(point.name, point.batch, point.sequence, point.past), seed, drawn)
    if not point.mix:
        return given
    if modality is None or modality.input is None:
        raise Usage("--mix, and the model has no groups of experts by modality", fix="Say --modality NAME=SPEC as well.")
    keys = keys_of(modality, interface)
    unknown = [name for name, _ in point.mix if not len(keys.get(name, ()))]
    if unknown:
        raise Usage(f"--mix names {unknown[0]!r}, and the modalities are {', '.join(n for n in keys if len(keys[n]))}")
    random = np.random.default_rng([seed, point.batch, point.total])
    owner, values = owners(point.mix, point.batch, point.total), np.zeros((point.batch, point.total), np.int64)
    for i, (name, _) in enumerate(point.mix):
        here = owner == i
        values[here] = random.choice(keys[name], int(here.sum()))
    given[modality.input] = values
    return given
