"""Quantisation on one page: which weights, in which formats, and their numbers, from a program to what is stored.

`passes/quantize_weights.py` says the result in the graph; here it is decided and computed, before the artifact is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mocomp import terminal
from mocomp.calibration import mixed
from mocomp.calibration.quantiser import Candidate, Quantiser
from mocomp.calibration.rows import rows_for
from mocomp.calibration.walk import Walk
from mocomp.errors import Usage
from mocomp.ir.program import Program
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.options import ConvertOptions, size_in_bytes
from mocomp.passes.quantize_weights import dense_weights, expert_weights, quantisable
from mocomp.quant.algorithms import Algorithm
from mocomp.quant.formats import Format, parse
from mocomp.quant.weight import QuantisedWeight, promised
from mocomp.registry import discover
from mocomp.targets import Target
from mocomp.verify.quality import Quality
from mocomp.weights.checkpoint import Checkpoint
from mocomp.weights.recipes import Reader
from mocomp.weights.scratch import Scratch

MIXED = "mixed"


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


def plan(
    program: Program,
    options: ConvertOptions,
    target: Target,
    checkpoint: Checkpoint | None,
    source: Source,
    interface: Interface,
) -> Plan:
    """The formats that options ask for, of weights that may be quantised. Raises Usage for names of none."""
    algorithm = algorithm_of(options.algorithm)
    formats: dict[str, Format] = {}
    notes: list[str] = []
    if options.quantize == MIXED:
        formats |= _mixed(program, options, target, checkpoint, source, interface, algorithm, notes)
    elif options.quantize:
        form = parse(spelled(options.quantize, options.group_size))
        formats |= dict.fromkeys(expert_weights(program), form)
    if options.quantize_dense:
        form = parse(spelled(options.quantize_dense, options.group_size or 32))
        formats |= dict.fromkeys(dense_weights(program), form)
    if options.quantizes and not formats:
        raise Usage("nothing to quantise: it has no mixtures", fix="Its linear layers: --quantize-dense int8.")
    text = ", dense ".join(text for text in (options.quantize, options.quantize_dense) if text)
    return Plan(text, formats, algorithm, options.few_tokens, notes)


def _mixed(
    program: Program,
    options: ConvertOptions,
    target: Target,
    checkpoint: Checkpoint | None,
    source: Source,
    interface: Interface,
    algorithm: Algorithm,
    notes: list[str],
) -> dict[str, Format]:
    """The formats that spend a budget best."""
    if checkpoint is None or not (options.bits or options.target_size):
        raise Usage(
            "--quantize mixed wants weights to measure and a budget to spend", fix="Say --bits 3.2 or --target-size 1.5GB."
        )
    names = expert_weights(program)
    elements = sum(math.prod(program.recipes[name].shape) for name in names)
    budget = int(options.bits * elements / 8)
    if options.target_size:
        dense = set(dense_weights(program)) if options.quantize_dense else set()
        form = parse(spelled(options.quantize_dense, options.group_size or 32)) if dense else None
        rest = {name: recipe for name, recipe in program.recipes.items() if name not in names}
        taken = sum(form.nbytes(r.shape) if form and name in dense else r.nbytes for name, r in rest.items())
        budget = size_in_bytes(options.target_size, "target size") - taken
    block = options.group_size or 32
    rows, _ = rows_for(source, interface, options, [])
    formats = [parse(f"int{bits}:{block}") for bits in (2, 4, 8)]
    pairs = [names[i : i + 2] for i in range(0, len(names), 2)]
    groups = [[name] for name in names] if target.mixes_projections else pairs
    return mixed.chosen(program, checkpoint.read, groups, formats, algorithm, budget, rows, notes)


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
    rows, learned = rows_for(source, interface, options, notes)
    visited = quantisable(program, {name for candidate in candidates for name in candidate.weights})
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
