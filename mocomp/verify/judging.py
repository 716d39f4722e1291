"""A run beside that of the original, layer by layer.

Experts that rounding may choose otherwise make large, legitimate errors behind them, so sequences in which that happened count
no more from there on; where it happens too often, or beyond the margin, it is a fault of that layer.
Dimension letters: B batch, S sequence, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from mocomp.verify.choices import differing, excusable
from mocomp.verify.measures import relative_error
from mocomp.verify.program_trail import Followed
from mocomp.verify.tolerance import Tolerance
from mocomp.verify.trail import OUTPUTS, Asked, Call, Trail


@dataclass
class LayerError:
    """One layer over all cases: the error of what it gives; of its mixtures the error of what comes in, that of the experts
    alone under a choice of ours, and the tokens that chose other experts, by rounding or beyond; and the fault, if it has one.
    """

    layer: str
    error: float = 0.0
    x: float = 0.0
    experts: float = 0.0
    tokens: int = 0
    flips: int = 0
    flips_within_margin: int = 0
    fault: str = ""


@dataclass
class Pair:
    """What both did with one case; `clean` [B] are the sequences in which rounding has decided nothing so far."""

    ask: Asked
    calls: list[Call]
    clean: np.ndarray

    def each(self, get: Callable[[Call], np.ndarray | None]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(what was found, what was expected, which tokens [B, S] count) of each call in which both have the value; none where
        no sequence counts any more."""
        if not self.clean.any():
            return
        for mine, original, mask in zip(self.calls, self.ask.calls, self.ask.masks, strict=True):
            found, expected = get(mine), get(original)
            if found is not None and expected is not None:
                yield found, expected, mask & self.clean[:, None]


def judge(followed: Followed, trail: Trail, tolerance: Tolerance) -> list[LayerError]:
    """Each layer that can be seen, in the order in which they run, and behind them the outputs; what is behind a layer in which
    rounding decided something in every sequence is left out."""
    pairs = [Pair(ask, calls, np.ones(ask.case.batch, bool)) for ask, calls in zip(trail.asked, followed.calls, strict=True)]
    layers = []
    for place in trail.layers:
        found = LayerError(place)
        mixtures = [name for name in trail.mixtures if f"{name}.".startswith(f"{place}.")]
        for name in mixtures:
            found.x = max(found.x, error_of(pairs, lambda call, name=name: call.x.get(name)) or 0.0)
            found.experts = _worst([found.experts, followed.experts.get(name, 0.0)])
            judge_choice(found, name, pairs, tolerance)
        error = error_of(pairs, lambda call, place=place: call.layers.get(place))
        if error is None and not mixtures:
            continue
        found.error = error or 0.0
        layers.append(found)
    names = trail.asked[0].calls[-1].outputs
    errors = [error_of(pairs, lambda call, name=name: call.outputs.get(name)) for name in names]
    known = [error for error in errors if error is not None]
    layers += [LayerError(OUTPUTS, _worst(known))] if known else []
    for layer in layers:
        layer.fault = _fault(layer, tolerance)
    return layers


def judge_choice(found: LayerError, name: str, pairs: list[Pair], tolerance: Tolerance) -> None:
    """Count the tokens that chose other experts; the sequences of those that may count no more."""
    tokens = within = 0
    close: list[tuple[Pair, np.ndarray]] = []
    for pair in pairs:
        for mine, original, mask in zip(pair.calls, pair.ask.calls, pair.ask.masks, strict=True):
            if name not in mine.chosen or name not in original.chosen:
                continue
            choices = mine.chosen[name], original.chosen[name]
            counts = _spread(mask & pair.clean[:, None], len(choices[1].ids))
            differs = differing(choices[1], choices[0]) & counts
            excused = excusable(differs, choices, tolerance.margin)
            tokens, within = tokens + int(counts.sum()), within + int(excused.sum())
            found.flips += int((differs & ~excused).sum())
            close.append((pair, excused))
    found.tokens, found.flips_within_margin = found.tokens + tokens, found.flips_within_margin + within
    if within <= max(tolerance.by_rounding * tokens, 1):
        for pair, excused in close:
            if len(excused) % len(pair.clean) == 0:
                pair.clean &= ~excused.reshape(len(pair.clean), -1).any(-1)


def error_of(pairs: list[Pair], get: Callable[[Call], np.ndarray | None]) -> float | None:
    """The largest relative error over all calls; None where nobody has the value."""
    errors = [
        relative_error(found[where], expected[where]) if found.shape == expected.shape else float("inf")
        for pair in pairs
        for found, expected, mask in pair.each(get)
        for where in [_places(mask, expected)]
    ]
    return _worst(errors) if errors else None


def _worst(errors: list[float]) -> float:
    """The largest, or what is no number, which `max` would pass over."""
    return float(np.max(errors))


def _places(mask: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Which entries of a value count: it has one for each token, [B, S, ..] or [B S, ..], or for each sequence."""
    return mask if value.shape[:2] == mask.shape else _spread(mask, len(value))


def _spread(mask: np.ndarray, length: int) -> np.ndarray:
    """mask [B, S] for the first dimension of a value: its tokens where they are so many, else as many for each sequence."""
    if length == mask.size:
        return mask.reshape(-1)
    counted: np.ndarray = mask.max(-1)
    return np.repeat(counted, length // len(counted)) if length % len(counted) == 0 else np.ones(length, bool)


def _fault(layer: LayerError, limit: Tolerance) -> str:
    """What is wrong with a layer; nothing where all is within the tolerance."""
    off = not layer.error <= limit.outputs
    chosen = f"of {layer.tokens} tokens chose other experts"
    rounded = off and layer.flips_within_margin > max(limit.by_rounding * layer.tokens, 1)  # else nobody is the worse for it
    experts = not layer.experts <= limit.experts
    if (off or layer.flips or experts) and not layer.x <= limit.outputs:
        return f"what comes to its experts is off by {layer.x:.1e} already"
    if layer.flips:
        return f"{layer.flips} {chosen}, beyond the margin"
    if rounded:
        return f"{layer.flips_within_margin} {chosen} by so little that rounding might explain each, but not so many"
    if experts:
        return f"its experts alone, under a choice of ours, are off by {layer.experts:.1e}, tolerance {limit.experts:.0e}"
    if off and layer.tokens:
        return "the same experts were chosen and are right, so it is their weights, or what comes after them"
    return f"tolerance {limit.outputs:.0e}" if off else ""
