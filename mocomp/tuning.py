"""How each mixture of an artifact runs, chosen by timing: the ways that its operator could be run, at the user's token counts.

Layers of one shape are timed once, on the weights of the first of them as they lie in the artifact (random ones where it has
none), and random routing in which some experts are busier than others. The operator that mocomp takes by default stays where
nothing beats it by more than the noise.
Dimension letters: T tokens, E experts, H hidden.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mocomp import terminal
from mocomp.errors import Usage
from mocomp.lowering import tuned
from mocomp.lowering.branches import Turn, way
from mocomp.lowering.onnx_session import DATA, load, replace
from mocomp.lowering.ways import Layer, Way
from mocomp.lowering.ways_session import WaySession, weights_for
from mocomp.registry import discover
from mocomp.targets import Artifact
from mocomp.verify.latency import Latency, latency_of
from mocomp.verify.memory import available

DEFAULT = "fused"
Opener = Callable[[tuple[Turn, ...]], WaySession]
SKEW = 0.5
"""Standard deviation of how much more an expert is liked than the others, beside that of 1 from token to token."""
ROUNDS, TOGETHER, SECONDS, HOPELESS = 12, 3, 3.0, 4.0
"""Turns that every way gets at least, runs of a turn that count, seconds that all turns take together at most if that is more,
and how many times slower than the fastest a way may be at first sight to be timed at all."""
MOST = 512 << 20
"""Bytes beside the weights beyond which no way is worth it."""
MOSTLY = 0.7
"""Share of the turns in which a way has to be faster than the default; by chance it would be half of them."""
SAME = 0.05
"""Share of the time by which two may differ and count as equally fast."""
REST = 0.02
"""Seconds before a turn: the threads of a session go on waiting for work for some time, and would hold up the next one's."""


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
    nodes = _fused(load(directory), artifact)
    if not nodes:
        raise Usage("nothing to tune: it has no mixture that a fused operator runs", fix="Leave out --tune.")
    shapes: dict[Layer, list[int]] = {}
    for i, node in nodes.items():
        shapes.setdefault(tuned.layer_of(node), []).append(i)
    result = Tuning(tokens)
    turns: dict[int, tuple[Turn, ...]] = {}
    has_weights = (directory / DATA).exists()
    for layer, places in shapes.items():
        timings, chosen = choose(layer, tokens, _opener(layer, nodes[places[0]] if has_weights else None, directory))
        result.layers.append(TunedLayer(layer.words, [artifact.mixtures[i].layer for i in places], timings, list(chosen)))
        turns |= dict.fromkeys(places, chosen)
    return rewrite(directory, artifact, turns), result


def rewrite(directory: Path, artifact: Artifact, turns: dict[int, tuple[Turn, ...]]) -> Artifact:
    """The artifact with its mixtures run so, by their numbers; the weights stay as they are, since all ways read them."""
    model = load(directory)
    nodes = _fused(model, artifact)
    changed = [(nodes[i], tuned.layer_of(nodes[i]), chosen) for i, chosen in turns.items() if chosen != (Turn(DEFAULT),)]
    if not changed:
        return artifact
    tuned.apply(model, changed)
    replace(model, directory)
    limits = {i: tuple(turn.tokens for turn in chosen if turn.tokens) for i, chosen in turns.items()}
    mixtures = [dataclasses.replace(m, limits=limits.get(i, m.limits)) for i, m in enumerate(artifact.mixtures)]
    operators = tuned.operators(model)
    return dataclasses.replace(artifact, mixtures=mixtures, operators=operators, nodes=sum(operators.values()))


def _fused(model: ir.Model, artifact: Artifact) -> dict[int, ir.Node]:
    """The fused mixtures among those of an artifact, by their numbers."""
    nodes = {str(node.outputs[0].name): node for node in tuned.mixture_nodes(model)}
    return {i: nodes[mixture.y] for i, mixture in enumerate(artifact.mixtures) if mixture.y in nodes}


def choose(layer: Layer, tokens: list[int], opened: Opener) -> tuple[list[Timing], tuple[Turn, ...]]:
    """(all timings, the best way at each count as turns) of mixtures of one shape; `opened` gives one that runs in some way.

    Where the best way changes between two counts, more are timed between them, until they are within twice of each other.
    """
    timings: list[Timing] = []
    best: dict[int, str] = {}
    waiting = list(tokens)
    with terminal.progress(f"timing {layer.words}", len(tokens), "token counts") as advance:
        while waiting:
            count = waiting.pop(0)
            rounds = timed(candidates(layer, count), opened, routed(layer, count))
            timings += [
                Timing(count, name, latency_of([ms for turn in turns for ms in turn])) for name, turns in rounds.items()
            ]
            best[count] = winner(rounds)
            advance(int(count in tokens))
            waiting = waiting or ([] if layer.form else between(dict(sorted(best.items()))))
    if layer.form:
        return timings, single(timings)
    return timings, turns_of(sorted(best), [best[count] for count in sorted(best)])


def candidates(layer: Layer, tokens: int) -> list[str]:
    """The ways that can run such a mixture and do not take too much memory for so many tokens."""
    ways: dict[str, Way] = {name: way(name) for name in discover("mocomp.lowering.ways", "Way")}
    return [name for name, found in ways.items() if found.takes(layer) and found.bytes(layer, tokens) <= _room()]


def between(best: dict[int, str]) -> list[int]:
    """Counts in the middle of those at which different ways are the best and one is more than twice the other; in order."""
    pairs = zip(best, list(best)[1:], strict=False)
    return [math.isqrt(low * high) for low, high in pairs if best[low] != best[high] and high > 2 * low]


def _opener(layer: Layer, node: ir.Node | None, directory: Path) -> Opener:
    """What opens a session of a layer, on the weights of a node of the artifact or else on random ones."""
    if node is not None:
        return lambda turns: WaySession.of(layer, turns, node, directory)
    weights = weights_for(layer)
    return lambda turns: WaySession.on(layer, turns, weights)


def winner(rounds: dict[str, list[list[float]]]) -> str:
    """The fastest, if it is so by more than the noise, which hits both alike: it beats the default in MOSTLY of their turns."""
    medians = {name: [statistics.median(turn) for turn in turns] for name, turns in rounds.items()}
    fastest = min(medians, key=lambda name: statistics.median(medians[name]))
    wins = sum(own < default for own, default in zip(medians[fastest], medians[DEFAULT], strict=True))
    return fastest if wins >= MOSTLY * len(medians[DEFAULT]) else DEFAULT


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
    two ways would take the memory of two. It beats the default somewhere by more than SAME, and is nowhere slower by more."""
    default = {timing.tokens: timing.ms.median for timing in timings if timing.way == DEFAULT}
    ratios: dict[str, list[float]] = {}
    for timing in timings:
        ratios.setdefault(timing.way, []).append(timing.ms.median / default[timing.tokens])
    for name, own in ratios.items():
        if len(own) == len(default) and max(own) <= 1 + SAME and min(own) < 1 - SAME:
            return (Turn(name),)
    return (Turn(DEFAULT),)


def timed(ways: list[str], opened: Opener, inputs: dict[str, np.ndarray]) -> dict[str, list[list[float]]]:
    """Milliseconds of each by turns, taken one after the other so that noise hits all alike; who is hopeless is left out.

    Each turn is a session of its own: where its buffers happen to lie makes some faster than others.
    """
    first = {name: min(_turn(opened, name, inputs, 1)) for name in ways}
    kept = [name for name in ways if name == DEFAULT or first[name] <= HOPELESS * min(first.values())]
    rounds: dict[str, list[list[float]]] = {name: [] for name in kept}
    for _ in range(_rounds(sum(first[name] for name in kept) / 1e3)):
        terminal.stop_if_interrupted()
        for name in kept:
            rounds[name].append(_turn(opened, name, inputs, TOGETHER))
    return rounds


def routed(layer: Layer, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    """x [T, H] and logits [T, E], float32, as a router might give them."""
    random = np.random.default_rng([seed, tokens])
    liked = SKEW * np.random.default_rng(seed).standard_normal(layer.experts)
    x, logits = (random.standard_normal((tokens, size)) for size in (layer.hidden, layer.experts))
    return {"x": x.astype(np.float32), "logits": (logits + liked).astype(np.float32)}


def _rounds(seconds: float) -> int:
    """As many as fit into the time when a run of every way takes so long, but some at least and thirty at most."""
    return min(max(ROUNDS, int(SECONDS / (TOGETHER * seconds + REST))), 30)


def _turn(opened: Opener, way: str, inputs: dict[str, np.ndarray], runs: int) -> list[float]:
    """Milliseconds of some runs, after one that does not count."""
    session = opened((Turn(way),))
    time.sleep(REST)
    session.run(inputs)
    taken = []
    for _ in range(runs):
        begin = time.perf_counter()
        session.run(inputs)
        taken.append(1e3 * (time.perf_counter() - begin))
    return taken


def _room() -> float:
    """Bytes that a way may take beside the weights."""
    return min(MOST, (available() or MOST) / 4)


def words(layer: TunedLayer, tokens: Iterable[int]) -> str:
    """What was chosen for the layers of a shape, in a sentence."""
    spans = []
    for turn in layer.chosen:
        spans.append(f"{turn.way} up to {turn.tokens} tokens" if turn.tokens else f"{turn.way}{' beyond' if spans else ''}")
    ratios = ", ".join(f"{layer.ratio(count):.2f} at {count}" for count in tokens)
    return f"{layer.shape}: {', '.join(spans)} (time over the fused operator's: {ratios})"
