"""Parity for models that route.

Top-k is discontinuous: a difference of 1e-6 in a logit can flip an expert and make a large, legitimate error, and a
tolerance loose enough for that hides real faults. So choice and arithmetic are judged apart: which experts were
chosen (and by what margin where they differ), what each layer's experts compute under the reference's own choice,
and the end-to-end error of sequences in which nothing flipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mocomp.models.interface import Interface, is_per_token
from mocomp.targets import Arrays, Mixture, Target
from mocomp.verify.experts_alone import experts_error
from mocomp.verify.inputs import Case
from mocomp.verify.measures import distribution, relative_error
from mocomp.verify.reference import Baseline, Observation, Routed
from mocomp.verify.tolerance import Tolerance


@dataclass
class CaseResult:
    """One case: errors by output, sequences without a flip, agreement of the likeliest token, KL in nats."""

    name: str
    errors: dict[str, float]
    sequences: int
    clean: int
    top1: float | None = None
    kl: float | None = None


@dataclass
class LayerResult:
    """One mixture over all cases: tokens, those that chose other experts (within and beyond the margin), the error of
    its experts under the reference's choice, experts reached of all; tokens not judged, since rounding had chosen for them, or
    for others of their sequence, in a layer before; the error of the block alone, router and experts, where it was run alone.
    """

    layer: str
    tokens: int = 0
    flips_within_margin: int = 0
    flips: int = 0
    experts_error: float = 0.0
    reached: int = 0
    experts: int = 0
    unjudged: int = 0
    alone: float | None = None

    def add(self, block: LayerResult) -> None:
        """What the block was found to do alone."""
        self.tokens, self.flips = self.tokens + block.tokens, self.flips + block.flips
        self.flips_within_margin += block.flips_within_margin
        self.experts_error, self.alone = max(self.experts_error, block.experts_error), block.alone


@dataclass
class Parity:
    """The verdict, with what led to it."""

    cases: list[CaseResult]
    layers: list[LayerResult]
    tolerance: Tolerance
    seed: int
    how: str = "full"
    """What was run: both models in full, or in parts (blocks)."""
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.failures

    @property
    def worst(self) -> float:
        return max((error for case in self.cases for error in case.errors.values()), default=0.0)

    @property
    def agreement(self) -> float:
        """Share of token choices equal to the reference's, those within the margin not counted against it."""
        tokens = sum(layer.tokens for layer in self.layers)
        return 1.0 - sum(layer.flips for layer in self.layers) / tokens if tokens else 1.0


@dataclass
class Parts:
    """What an artifact that was run in parts did: in each case, (before, after) as of `run_case`, and each mixture alone."""

    answers: list[tuple[Arrays, Arrays]]
    blocks: dict[str, LayerResult]


def prove(
    baseline: Baseline,
    target: Target,
    directory: Path,
    mixtures: list[Mixture],
    tolerance: Tolerance,
    *,
    seed: int = 0,
    another: bool = False,
    exact: bool = False,
    parts: Parts | None = None,
) -> Parity:
    """Compare the artifact in `directory` with what the original did on every case.

    With `another`, the baseline is of another model than the artifact was made from, such as the dense model that its
    experts are copies of: mixtures that it has not are judged by the outputs alone. With `exact`, operators that would round
    activations for speed are kept from it, so that all else can be held to a tight tolerance. `parts` is what it did, where it
    was run in parts.
    """
    absent = [m.layer for m in mixtures if another and not _has(baseline, target, directory, m)]
    mixtures = [m for m in mixtures if m.layer not in absent]
    answers = _answers(baseline, target, directory, mixtures, exact) if parts is None else parts.answers
    layers = {m.layer: LayerResult(m.layer, experts=baseline.experts.get(m.layer, 0)) for m in mixtures}
    reached: dict[str, set[int]] = {m.layer: set() for m in mixtures}
    results: list[CaseResult] = []
    longest_routed: dict[str, Routed] = {}
    for (case, given, seen), (before, got) in zip(baseline.runs, answers, strict=True):
        whole = given.get("attention_mask", np.ones((case.batch, case.total))).astype(bool)
        past, mask = whole[:, : case.past], whole[:, case.past :]
        flipped, flipped_before = np.zeros(mask.size, bool), np.zeros(past.size, bool)
        for m in mixtures:
            # what comes to a layer behind one where rounding decided is legitimately another thing
            clean = ~np.concatenate([flipped_before.reshape(past.shape), flipped.reshape(mask.shape)], 1).any(-1, keepdims=True)
            now, earlier = (mask & clean).reshape(-1), (past & clean).reshape(-1)
            layers[m.layer].unjudged += int(whole.sum() - now.sum() - earlier.sum())
            flipped |= judge_choice(layers[m.layer], m, seen.routed[m.layer], got, now, tolerance.margin)
            if case.past:
                first = seen.routed_before[m.layer]
                flipped_before |= judge_choice(layers[m.layer], m, first, before, earlier, tolerance.margin)
            reached[m.layer] |= set(np.unique(seen.routed[m.layer].ids[mask.reshape(-1)]).tolist())
            if len(seen.routed[m.layer].x) >= len(longest_routed.get(m.layer, seen.routed[m.layer]).x):
                longest_routed[m.layer] = seen.routed[m.layer]
        results.append(
            _judge_outputs(
                case, seen, got, whole, np.concatenate([flipped_before.reshape(past.shape), flipped.reshape(mask.shape)], 1)
            )
        )
    for m in mixtures:
        layers[m.layer].reached = len(reached[m.layer])
        if parts is not None:
            layers[m.layer].add(parts.blocks[m.layer])
            continue
        fed = [longest_routed[m.layer], baseline.forced[m.layer]]
        layers[m.layer].experts_error = experts_error(target, directory, m, fed, exact)
    parity = Parity(results, list(layers.values()), tolerance, seed, "full" if parts is None else "blocks")
    parity.notes += [f"{layer}: the reference has no such mixture, so only outputs were compared" for layer in absent]
    if target.deployment.emulate:
        parity.notes.append("emulated: its float32 twin was run on the CPU, and nothing on the device that it was made for")
    conclude(parity)
    return parity


def _answers(
    baseline: Baseline, target: Target, directory: Path, mixtures: list[Mixture], exact: bool
) -> Iterator[tuple[Arrays, Arrays]]:
    runner = target.open(directory, inner_values(mixtures), exact)
    for case, given, _ in baseline.runs:
        yield run_case(runner.run, baseline.interface, case, given)


def _has(baseline: Baseline, target: Target, directory: Path, m: Mixture) -> bool:
    """Whether the reference has that mixture, with as many experts."""
    return m.layer in baseline.experts and baseline.experts[m.layer] == target.open_mixture(directory, m).experts


def run_case(run: Callable[[Arrays], Arrays], interface: Interface, case: Case, given: Arrays) -> tuple[Arrays, Arrays]:
    """An artifact's outputs for the past of a case, run first in a call of its own, and for the rest after it."""
    past = {
        f"past_key_values.{i}.{part}": np.zeros((case.batch, heads, 0, width), np.float32)
        for i, (heads, *widths) in enumerate(interface.past)
        for part, width in zip(("key", "value"), widths, strict=True)
    }
    before: Arrays = {}
    if case.past:
        before = run({name: array[:, : case.past] for name, array in given.items()} | past)
        past = {name: before[name.replace("past_key_values", "present")] for name in past}
    now = {name: array[:, case.past :] if is_per_token(name) else array for name, array in given.items()}
    return before, run(now | past)


def judge_choice(layer: LayerResult, m: Mixture, ref: Routed, got: Arrays, valid: np.ndarray, margin: float) -> np.ndarray:
    """Count tokens whose chosen experts differ; returns which tokens [T] those are."""
    choice, ids = got[m.choice], m.chosen(got)
    differs = valid & ((np.sort(ids, -1) != np.sort(ref.ids, -1)).any(-1) if ids.shape == ref.ids.shape else True)
    ordered = -np.sort(-choice, axis=-1)
    finite = np.where(np.isfinite(ordered), ordered, np.nan)
    gap = ordered[:, m.k - 1] - ordered[:, m.k] if choice.shape[1] > m.k else np.full(len(choice), np.inf)
    scale = np.nanmax(np.abs(finite), axis=-1) if finite.size else np.ones(len(choice))
    close = differs & (gap <= margin * scale)
    layer.tokens += int(valid.sum())
    layer.flips_within_margin += int(close.sum())
    layer.flips += int((differs & ~close).sum())
    return differs


def _judge_outputs(case: Case, seen: Observation, got: Arrays, whole: np.ndarray, flipped: np.ndarray) -> CaseResult:
    """`whole` [B, total] says which positions are not padding, `flipped` [B, total] where other experts were chosen."""
    mask = whole[:, case.past :]
    clean = np.logical_not(flipped.any(axis=-1, keepdims=True))[:, 0]
    errors: dict[str, float] = {}
    for name, expected in seen.outputs.items():
        per_token = expected.ndim == 3 and expected.shape[:2] == mask.shape
        where = mask & clean[:, None] if per_token else clean if len(expected) == len(clean) else slice(None)
        errors[name] = relative_error(got[name][where], expected[where])
    worst = 0.0
    for i, pair in enumerate(seen.present):
        for part, expected in zip(("key", "value"), pair, strict=True):
            actual = got[f"present.{i}.{part}"]
            if actual.shape[2] != case.total:
                worst = float("inf")
                continue
            # the reference may keep no more than its window; padding is nobody's
            kept = expected.shape[2]
            rows = (whole & clean[:, None])[:, -kept:]
            pick = np.broadcast_to(rows[:, None, :], expected.shape[:3])
            worst = max(worst, relative_error(actual[:, :, -kept:][pick], expected[pick]))
    if seen.present:
        errors["present"] = worst
    result = CaseResult(case.name, errors, case.batch, int(clean.sum()))
    if "logits" in seen.outputs and seen.outputs["logits"].ndim == 3:
        result.top1, result.kl = distribution(got["logits"][mask], seen.outputs["logits"][mask])
    return result


def inner_values(mixtures: list[Mixture]) -> list[str]:
    """The values of an artifact that tell which experts are chosen."""
    return [name for m in mixtures for name in m.tells]


def conclude(parity: Parity) -> None:
    """Write down all that leaves the tolerance, and what the inputs did not show."""
    limit = parity.tolerance
    for case in parity.cases:
        for name, error in case.errors.items():
            if not error <= limit.outputs:
                parity.failures.append(f"{case.name}: {name} off by {error:.1e}, tolerance {limit.outputs:.0e}")
    for layer in parity.layers:
        if layer.flips_within_margin > max(limit.by_rounding * layer.tokens, 1):
            parity.failures.append(
                f"{layer.layer}: {layer.flips_within_margin} of {layer.tokens} tokens chose other experts by so little that "
                "rounding might explain each, but not so many"
            )
        if layer.flips:
            parity.failures.append(
                f"{layer.layer}: {layer.flips} of {layer.tokens} tokens chose other experts, beyond the margin"
            )
        if not layer.experts_error <= limit.experts:
            parity.failures.append(f"{layer.layer}: experts off by {layer.experts_error:.1e}, tolerance {limit.experts:.0e}")
        if layer.alone is not None and not layer.alone <= limit.experts:
            parity.failures.append(f"{layer.layer}: alone off by {layer.alone:.1e}, tolerance {limit.experts:.0e}")
        parity.notes += _unproven(layer)
    if parity.cases and not any(case.clean for case in parity.cases):
        parity.failures.append("in every sequence some expert flipped, so nothing could be compared end to end")


def _unproven(layer: LayerResult) -> list[str]:
    """What the inputs did not show of a layer."""
    notes = []
    if layer.unjudged > layer.tokens:
        whole = layer.tokens + layer.unjudged
        notes.append(
            f"{layer.layer}: only {layer.tokens} of {whole} tokens were judged: rounding chose other experts before it"
        )
    if layer.reached < layer.experts:
        idle = layer.experts - layer.reached
        notes.append(f"{layer.layer}: no input was routed to {idle} of {layer.experts} experts; they were proven by force")
    return notes
