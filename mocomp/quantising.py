"""Quantisation on one page: which weights, in which formats, and their numbers, from a program to what is stored.

`passes/quantize_weights.py` says the result in the graph; here it is decided and computed, before the artifact is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from mocomp import terminal
from mocomp.calibration.data import data_for
from mocomp.calibration.quantiser import Candidate, Quantiser
from mocomp.calibration.walk import Walk
from mocomp.errors import Usage
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, is_call, subgraph_into
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.options import ConvertOptions
from mocomp.quant.algorithms import Algorithm
from mocomp.quant.formats import Format, parse
from mocomp.quant.weight import QuantisedWeight, promised
from mocomp.registry import discover
from mocomp.verify.quality import Quality
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Reader
from mocomp.weights.scratch import Scratch

aten = torch.ops.aten
HELD_OUT = 5
"""One row of so many is kept to judge by."""
MOST_TOKENS = 32768
"""Tokens of calibration data that are run; more would fill the memory with activations and change little."""


@dataclass
class Plan:
    """What becomes of a program's weights: the format of each, and who chooses the numbers."""

    text: str
    formats: dict[str, Format]
    algorithm: Algorithm
    few_tokens: str = "all"
    notes: list[str] = field(default_factory=list)

    def weights(self, program: Program, label: str = "quantised:") -> dict[str, QuantisedWeight]:
        """Where each weight will be found, once `fill` has run."""
        recipes = program.recipes
        return {name: promised(label + name, recipes[name].shape, form) for name, form in self.formats.items()}

    def candidate(self, weights: dict[str, QuantisedWeight], store: Scratch) -> Candidate:
        """This plan as a candidate of `fill`."""
        return Candidate(self.text, weights, self.algorithm, store, self.few_tokens)


def plan(program: Program, options: ConvertOptions) -> Plan:
    """The formats that options ask for, of weights that may be quantised. Raises Usage for names of none."""
    algorithm = algorithm_of(options.algorithm)
    formats: dict[str, Format] = {}
    if options.quantize:
        form = parse(spelled(options.quantize, options.group_size))
        formats |= dict.fromkeys(expert_weights(program), form)
    if options.quantize_dense:
        form = parse(spelled(options.quantize_dense, options.group_size or 32))
        formats |= dict.fromkeys(dense_weights(program), form)
    if options.quantizes and not formats:
        raise Usage("nothing to quantise: it has no mixtures", fix="Its linear layers: --quantize-dense int8.")
    text = ", dense ".join(text for text in (options.quantize, options.quantize_dense) if text)
    return Plan(text, formats, algorithm, options.few_tokens)


def spelled(text: str, group_size: int) -> str:
    """A format as options give it; integers of 2 and 4 bits are in blocks of 32 where none is said."""
    name, *rest = text.split(":")
    if any(part.isdigit() for part in rest):
        return text
    size = group_size or (32 if name in ("int2", "int4") else 0)
    return ":".join([name, *([str(size)] if size else []), *rest])


def algorithm_of(name: str) -> Algorithm:
    """The algorithm of that name. Raises Usage for one that is none."""
    known = discover("mocomp.quant.algorithms", "Algorithm")
    if name not in known:
        raise Usage(f"no algorithm {name!r}; they are {', '.join(known)}")
    return known[name]()


def expert_weights(program: Program) -> list[str]:
    """The names of the experts' weights, in their order."""
    names = {node: name for node, name in program.weights()}
    return [names[n.args[i]] for n in calls(program, MOCOMP.experts.default) for i in (3, 5) if n.args[i] in names]


def dense_weights(program: Program) -> list[str]:
    """The names of the weights of linear layers that are neither routers nor gates of a shared expert."""
    names = {node: name for node, name in program.weights()}
    routers: set[fx.Node] = set()
    for node in calls(program, MOCOMP.experts.default):
        routing = [argument for argument in node.args[1:3] if isinstance(argument, fx.Node)]
        _, edge = subgraph_into(routing, lambda n: n.op == "placeholder" or is_call(n, aten.linear.default))
        routers |= {n for n in edge if n.op == "call_function"}
    found = [n for n in calls(program, aten.linear.default) if n not in routers and n.args[1] in names]
    return list(dict.fromkeys(names[n.args[1]] for n in found if n.args[1].meta["val"].shape[0] > 1))


@contextmanager
def scratch(directory: Path, name: str = "quantised") -> Iterator[Scratch]:
    """A place for quantised weights inside the directory that is being filled; gone when the block ends."""
    store = Scratch(directory / f".{name}", f"{name}:")
    try:
        yield store
    finally:
        store.close()


def fill(
    program: Program,
    checkpoint: Checkpoint | None,
    candidates: list[Candidate],
    source: Source,
    interface: Interface,
    options: Any,
    notes: list[str],
) -> list[Quality]:
    """Quantise; returns what each candidate costs in quality, and adds to `notes` what there is to know of the data.

    The model is run over the data where an algorithm learns from it or data is given to judge by; else weights are all that
    is looked at, and no quality is told. Without a checkpoint there is nothing to do.
    """
    if checkpoint is None or not any(candidate.weights for candidate in candidates):
        return []
    read = checkpoint.read
    if not options.calibration and not any(candidate.algorithm.calibrated for candidate in candidates):
        for candidate in candidates:
            _unseen(program, read, candidate)
        return []
    data = data_for(source, interface, options.calibration, options.seed, source.plan)
    notes += data.notes
    rows = _as_many_as_fit(data.rows, notes)
    learned = [len(rows) < HELD_OUT or i % HELD_OUT != HELD_OUT - 1 for i in range(len(rows))]
    rows = [row | _no_past(interface) for row in rows]
    names = {name for candidate in candidates for name in candidate.weights}
    visited = {n for n in calls(program, MOCOMP.experts.default, aten.linear.default) if names & _weights_of(program, n)}
    quantiser = Quantiser(program, read, candidates, rows, learned)
    terminal.say(f"calibration: {len(rows)} rows, {len(rows) - sum(learned)} of them held out")
    Walk(program, read, visited, 1 + len(candidates)).run(rows, quantiser)
    words = f"{len(rows) - sum(learned) or len(rows)} rows of {options.calibration or 'random tokens'}"
    qualities = [candidate.quality() for candidate in candidates]
    for quality in qualities:
        quality.data = words
    return qualities


def _unseen(program: Program, read: Reader, candidate: Candidate) -> None:
    """Weights alone, some experts at a time."""
    total = sum(program.recipes[name].nbytes for name in candidate.weights)
    with terminal.progress(f"quantising with {candidate.algorithm.name}", total) as advance:
        for name in candidate.weights:
            recipe = program.recipes[name]
            step = max(CHUNK * recipe.shape[0] // recipe.nbytes, 1)
            for start in range(0, recipe.shape[0], step):
                terminal.stop_if_interrupted()
                w = recipe.rows(read, start, min(start + step, recipe.shape[0])).float()
                candidate.make(name, w if w.dim() == 3 else w[None], _nothing, {})
                advance(w.nbytes)


CHUNK = 8 << 20
"""Bytes of float weights that are quantised together where nothing else asks for more."""


def _nothing() -> Any:
    raise AssertionError("an algorithm that learns from data was run without")


def _weights_of(program: Program, node: fx.Node) -> set[str]:
    names = {placeholder: name for placeholder, name in program.weights()}
    at = (3, 5) if node.target is MOCOMP.experts.default else (1,)
    return {names[node.args[i]] for i in at if node.args[i] in names}  # type: ignore[index]


def _as_many_as_fit(rows: list[dict], notes: list[str]) -> list[dict]:
    """Rows up to MOST_TOKENS, evenly from the whole, with a note if they are not all."""
    sizes = [max((value.shape[1] for value in row.values() if value.dim() == 2), default=1) for row in rows]
    if sum(sizes) <= MOST_TOKENS:
        return rows
    step = -(-sum(sizes) // MOST_TOKENS)
    notes.append(f"calibration ran on every {step}th of {len(rows)} rows, {sum(sizes[::step])} tokens")
    return rows[::step]


def _no_past(interface: Interface) -> dict[str, torch.Tensor]:
    """Keys and values of length 0 for a generator."""
    return {
        f"past_key_values.{i}.{part}": torch.zeros(1, heads, 0, width)
        for i, (heads, *widths) in enumerate(interface.past)
        for part, width in zip(("key", "value"), widths, strict=True)
    }
