"""How each mixture of an artifact runs, chosen by timing: the ways that its operator could be run, at the user's token counts.

Layers of one shape are timed once, on random weights of that shape and random routing in which some experts are busier than
others. The operator that mocomp takes by default stays where nothing beats it by more than the noise.
Dimension letters: T tokens, E experts, H hidden.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mocomp import terminal
from mocomp.errors import Usage
from mocomp.lowering import tuned
from mocomp.lowering.branches import Turn, way
from mocomp.lowering.onnx_session import load, replace
from mocomp.lowering.ways import Layer, Way
from mocomp.lowering.ways_session import WaySession, weights_for
from mocomp.registry import discover
from mocomp.targets import Artifact
from mocomp.verify.latency import Latency, latency_of
from mocomp.verify.memory import available

DEFAULT = "fused"
SKEW = 0.5
"""Standard deviation of how much more an expert is liked than the others, beside that of 1 from token to token."""
ROUNDS, SECONDS, HOPELESS = 7, 1.5, 4.0
"""Turns that every way gets at least, seconds that they take together at most if that is more, and how many times slower than
the fastest a way may be at first sight to be timed at all."""


@dataclass
class Timing:
    """One way at one number of tokens."""

    tokens: int
    way: str
    ms: Latency


@dataclass
class TunedLayer:
    """Layers of one shape: how long each way took, and which way runs up to how many tokens (0: all that are left)."""

    shape: str
    layers: list[str]
    timings: list[Timing]
    chosen: list[Turn]

    def ratio(self, tokens: int) -> float:
        """Time of what was chosen at so many tokens, over that of the default."""
        ms = {timing.way: timing.ms.median for timing in self.timings if timing.tokens == tokens}
        return ms[self.at(tokens)] / ms[DEFAULT]

    def at(self, tokens: int) -> str:
        """The way that runs at so many tokens."""
        return next(turn.way for turn in self.chosen if not turn.tokens or tokens <= turn.tokens)


@dataclass
class Tuning:
    """What was timed and chosen, for the report."""

    tokens: list[int]
    layers: list[TunedLayer] = field(default_factory=list)


def tune(directory: Path, artifact: Artifact, tokens: list[int]) -> tuple[Artifact, Tuning]:
    """Time, choose, and write the graph of the artifact in `directory` again where a choice is not the default.

    Raises Usage when it has no fused mixtures.
    """
    nodes = tuned.mixture_nodes(load(directory))
    if not nodes:
        raise Usage("nothing to tune: it has no mixture that a fused operator runs", fix="Leave out --tune.")
    shapes: dict[Layer, list[int]] = {}
    for i, node in enumerate(nodes):
        shapes.setdefault(tuned.layer_of(node), []).append(i)
    result = Tuning(tokens)
    turns: dict[int, tuple[Turn, ...]] = {}
    for layer, places in shapes.items():
        timings, chosen = choose(layer, tokens)
        result.layers.append(TunedLayer(layer.words, [artifact.mixtures[i].layer for i in places], timings, list(chosen)))
        turns |= dict.fromkeys(places, chosen)
    return rewrite(directory, artifact, turns), result


def rewrite(directory: Path, artifact: Artifact, turns: dict[int, tuple[Turn, ...]]) -> Artifact:
    """The artifact with its mixtures run so, by their numbers; the weights stay as they are, since all ways read them."""
    model = load(directory)
    nodes = tuned.mixture_nodes(model)
    changed = [(nodes[i], tuned.layer_of(nodes[i]), chosen) for i, chosen in turns.items() if chosen != (Turn(DEFAULT),)]
    if not changed:
        return artifact
    tuned.apply(model, changed)
    replace(model, directory)
    limits = {i: tuple(turn.tokens for turn in chosen if turn.tokens) for i, chosen in turns.items()}
    mixtures = [dataclasses.replace(m, limits=limits.get(i, ())) for i, m in enumerate(artifact.mixtures)]
    operators = tuned.operators(model)
    return dataclasses.replace(artifact, mixtures=mixtures, operators=operators, nodes=sum(operators.values()))


def choose(layer: Layer, tokens: list[int]) -> tuple[list[Timing], tuple[Turn, ...]]:
    """(all timings, the best way at each count as turns) of mixtures of one shape."""
    ways: dict[str, Way] = {name: way(name) for name in discover("mocomp.lowering.ways", "Way")}
    weights = weights_for(layer)
    timings: list[Timing] = []
    best: list[str] = []
    with terminal.progress(f"timing {layer.words}", len(tokens), "token counts") as advance:
        for count in tokens:
            terminal.stop_if_interrupted()
            fits = {n: w for n, w in ways.items() if w.takes(layer) and w.bytes(layer, count) <= _room()}
            sessions = {name: WaySession(layer, (Turn(name),), weights) for name in fits}
            latencies = timed(sessions, routed(layer, count))
            timings += [Timing(count, name, ms) for name, ms in latencies.items()]
            best.append(winner(latencies))
            advance(1)
    return timings, single(timings) if layer.form else turns_of(tokens, best)


def winner(latencies: dict[str, Latency]) -> str:
    """The fastest, if it is so by more than the noise: its median is below what the default needs in its best runs."""
    fastest = min(latencies, key=lambda name: latencies[name].median)
    return fastest if latencies[fastest].median < latencies[DEFAULT].p10 else DEFAULT


def turns_of(tokens: list[int], best: list[str]) -> tuple[Turn, ...]:
    """The ways in turn, each up to the geometric mean of the last count that it won and the first that the next won."""
    turns: list[Turn] = []
    for i, name in enumerate(best):
        if i + 1 < len(best) and best[i + 1] == name:
            continue
        last = i + 1 == len(best)
        turns.append(Turn(name, 0 if last else math.isqrt(tokens[i] * tokens[i + 1])))
    return tuple(turns)


def single(timings: list[Timing]) -> tuple[Turn, ...]:
    """One way for any number of tokens: ONNX Runtime packs quantised weights again for every operator that reads them, so that
    two ways would take the memory of two. It wins somewhere, and is nowhere worse than the default by more than the noise."""
    default = {timing.tokens: timing.ms for timing in timings if timing.way == DEFAULT}
    others: dict[str, list[Timing]] = {}
    for timing in timings:
        others.setdefault(timing.way, []).append(timing)
    for name, own in others.items():
        everywhere = len(own) == len(default) and all(timing.ms.median <= default[timing.tokens].p90 for timing in own)
        if everywhere and any(timing.ms.median < default[timing.tokens].p10 for timing in own):
            return (Turn(name),)
    return (Turn(DEFAULT),)


def timed(sessions: dict[str, WaySession], inputs: dict[str, np.ndarray]) -> dict[str, Latency]:
    """Milliseconds of each, taking turns so that noise hits all alike; those that are hopeless are left out."""
    first = {name: min(_ms(session, inputs) for _ in range(2)) for name, session in sessions.items()}
    kept = [name for name in sessions if name == DEFAULT or first[name] <= HOPELESS * min(first.values())]
    times: dict[str, list[float]] = {name: [] for name in kept}
    for _ in _rounds(sum(first[name] for name in kept) / 1e3):
        for name in kept:
            times[name].append(_ms(sessions[name], inputs))
    return {name: latency_of(taken) for name, taken in times.items()}


def routed(layer: Layer, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    """x [T, H] and logits [T, E], float32, as a router might give them."""
    random = np.random.default_rng([seed, tokens])
    liked = SKEW * np.random.default_rng(seed).standard_normal(layer.experts)
    x, logits = (random.standard_normal((tokens, size)) for size in (layer.hidden, layer.experts))
    return {"x": x.astype(np.float32), "logits": (logits + liked).astype(np.float32)}


def _rounds(seconds: float) -> Iterator[int]:
    """As many rounds as fit into the time, but some at least and a hundred at most."""
    return iter(range(min(max(ROUNDS, int(SECONDS / max(seconds, 1e-6))), 100)))


def _ms(session: WaySession, inputs: dict[str, np.ndarray]) -> float:
    begin = time.perf_counter()
    session.run(inputs)
    return 1e3 * (time.perf_counter() - begin)


def _room() -> float:
    """Bytes that a way may take beside the weights: a quarter of what is free."""
    free = available()
    return math.inf if free is None else free / 4


def words(layer: TunedLayer, tokens: Iterable[int]) -> str:
    """What was chosen for the layers of a shape, in a sentence."""
    spans = []
    for turn in layer.chosen:
        spans.append(f"{turn.way} up to {turn.tokens} tokens" if turn.tokens else f"{turn.way}{' beyond' if spans else ''}")
    ratios = ", ".join(f"{layer.ratio(count):.2f} at {count}" for count in tokens)
    return f"{layer.shape}: {', '.join(spans)} (time over the fused operator's: {ratios})"
