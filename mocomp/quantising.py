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
from mocomp.calibration.mixed import Mixing
from mocomp.calibration.quantiser import Candidate, Quantiser
from mocomp.calibration.rows import rows_for
from mocomp.calibration.walk import Walk
from mocomp.errors import MocompError, Usage
from mocomp.executors import Executor
from mocomp.ir.program import Program
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.options import ConvertOptions, SweepOptions
from mocomp.passes.quantize_weights import banks, dense_weights, expert_weights, quantisable
from mocomp.quant.algorithms import Algorithm
from mocomp.quant.dequantised import parts_of
from mocomp.quant.formats import Format, parse
from mocomp.quant.parts import quantised
from mocomp.quant.weight import QuantisedWeight, promised
from mocomp.registry import discover
from mocomp.settings import size_in_bytes
from mocomp.targets import Target
from mocomp.verify.quality import Quality
from mocomp.weights.checkpoint import Weights
from mocomp.weights.journal import Journal
from mocomp.weights.parts import complete
from mocomp.weights.scratch import Scratch

MIXED, FLOAT = "mixed", "float"


@dataclass(frozen=True)
class Job:
    """What is to be quantised: a program of explicit mixtures with what it came from, for a target, as `options` say."""

    program: Program
    source: Source
    interface: Interface
    checkpoint: Weights | None
    target: Target
    options: ConvertOptions | SweepOptions


@dataclass
class Plan:
    """What becomes of a program's weights: the format of each, who chooses the numbers, and those that are `kept` as the
    checkpoint has them."""

    text: str
    formats: dict[str, Format]
    algorithm: Algorithm
    few_tokens: str = "all"
    kept: dict[str, QuantisedWeight] = field(default_factory=dict)

    def candidate(self, program: Program, store: Scratch) -> Candidate:
        """This plan as a candidate of `fill`: where each weight will be found once that has run."""
        of_w_out = {name for _, name in banks(program).values()}  # whose inputs w_in can take the scales of
        weights = {}
        for name, form in self.formats.items():
            balanced = self.algorithm.balances and name not in of_w_out
            weights[name] = promised(store.label + name, program.recipes[name].shape, form, balanced)
        return Candidate(self.text, weights, self.algorithm, store, self.few_tokens)


def plan(job: Job, notes: list[str]) -> Plan:
    """The formats that options ask for, of weights that may be quantised. Raises Usage for names of none."""
    options, program = job.options, job.program
    algorithm, form = named(options)
    formats: dict[str, Format] = {}
    kept = _kept(job, notes) if job.source.quantization and not options.quantize else {}
    if options.quantize == MIXED:
        formats |= _mixed(job, algorithm, notes)
    elif form is not None:
        formats |= dict.fromkeys(expert_weights(program), form)
    if options.quantize_dense:
        formats |= dict.fromkeys(dense_weights(program), _dense_format(options))
    if (options.quantize not in ("", FLOAT) or options.quantize_dense) and not formats:
        raise Usage("nothing to quantise: it has no mixtures", fix="Its linear layers: --quantize-dense int8.")
    if options.calibration and not formats and options.quantize != FLOAT and not options.measures_usage:
        raise Usage("--calibration is for weights that are quantised, and none are", fix="Say --quantize, or leave it out.")
    text = ", dense ".join(text for text in (options.quantize, options.quantize_dense) if text)
    return Plan(text, formats, algorithm, options.few_tokens, {n: w for n, w in kept.items() if n not in formats})


def named(options: ConvertOptions | SweepOptions) -> tuple[Algorithm, Format | None]:
    """The algorithm, and the one format of the experts if there is one; asked before any work. Raises Usage."""
    if options.quantize_dense:
        _dense_format(options)
    several = options.quantize in ("", FLOAT, MIXED)
    return algorithm_of(options.algorithm), None if several else parse(spelled(options.quantize, options.group_size))


def spelled(text: str, group_size: int, blocked: tuple[str, ...] = ("int2", "int4")) -> str:
    """A format as options give it, as `parse` reads it: those of `blocked` are in blocks of 32 where nothing is said, and
    `int4:row` has a scale per row."""
    name, *rest = text.split(":")
    if "row" in rest:
        return ":".join([name, *(part for part in rest if part != "row")])
    if any(part.isdigit() for part in rest):
        return text
    size = group_size or (32 if name in blocked else 0)
    return ":".join([name, *([str(size)] if size else []), *rest])


def algorithm_of(name: str) -> Algorithm:
    """The algorithm of that name. Raises Usage for one that is none."""
    known = discover("mocomp.quant.algorithms", "Algorithm")
    if name not in known:
        raise Usage(f"no algorithm {name!r}; they are {', '.join(known)}")
    return known[name]()


def _dense_format(options: ConvertOptions | SweepOptions) -> Format:
    """That of linear layers; integers, of 8 bits too, are in blocks of 32 where none is said."""
    size = 32 if options.quantize_dense.startswith("int") else 0
    return parse(spelled(options.quantize_dense, options.group_size or size))


def _kept(job: Job, notes: list[str]) -> dict[str, QuantisedWeight]:
    """The weights that are quantised already, in a format that the target takes: their bytes are moved, not their numbers."""
    experts = expert_weights(job.program)
    pairs = [experts[i : i + 2] for i in range(0, len(experts), 2)]
    kept: dict[str, QuantisedWeight] = {}
    unpacked: dict[str, int] = {}
    for names in [*pairs, *([name] for name in dense_weights(job.program))]:
        recipes = [job.program.recipes[name] for name in names]
        parts = [parts_of(recipe) for recipe in recipes]
        if not all(parts):
            continue
        stored = [(parse(p[0]), recipe.shape) for p, recipe in zip(parts, recipes, strict=True) if p]
        reason = job.target.obstacle(stored)
        if reason is not None:
            unpacked[reason] = unpacked.get(reason, 0) + len(names)
            continue
        kept |= {n: QuantisedWeight(p[0], r.shape[-1], p[1]) for n, p, r in zip(names, parts, recipes, strict=True) if p}
    notes += [f"{count} quantised weights become floats: {reason}" for reason, count in unpacked.items()]
    if kept:
        notes.append(f"{len(kept)} weights stay quantised as the checkpoint has them")
    return kept


def _mixed(job: Job, algorithm: Algorithm, notes: list[str]) -> dict[str, Format]:
    """The formats that spend a budget best."""
    program, options = job.program, job.options
    if job.checkpoint is None or not (options.bits or options.target_size):
        raise Usage(
            "--quantize mixed wants weights to measure and a budget to spend", fix="Say --bits 3.2 or --target-size 1.5GB."
        )
    names = expert_weights(program)
    budget = int(options.bits * sum(math.prod(program.recipes[name].shape) for name in names) / 8)
    if options.target_size:
        budget = size_in_bytes(options.target_size, "target size") - _rest(program, options)
    rows, learned = rows_for(job.source, job.interface, options, [])
    formats = [parse(f"int{bits}:{options.group_size or 32}") for bits in (2, 4, 8)]
    pairs = [names[i : i + 2] for i in range(0, len(names), 2)]
    groups = [[name] for name in names] if job.target.mixes_projections else pairs
    return Mixing(program, job.checkpoint.read, groups, formats, algorithm, rows, learned).chosen(budget, notes)


def _rest(program: Program, options: ConvertOptions | SweepOptions) -> int:
    """Bytes of all that is not of experts; a head that is tied to an embedding is packed, and the embedding is there too."""
    dense = set(dense_weights(program)) if options.quantize_dense else set()
    packed = quantisable(program, [*expert_weights(program), *dense])
    floats = {name for node, name in program.weights() if any(user not in packed or name not in dense for user in node.users)}
    floats -= set(expert_weights(program))
    return sum(program.recipes[name].nbytes for name in floats) + sum(
        _dense_format(options).nbytes(program.recipes[name].shape) for name in dense
    )


@contextmanager
def scratch(
    directory: Path, name: str = "quantised", executor: Executor | None = None, journal: Journal | None = None
) -> Iterator[Scratch]:
    """A place for quantised weights inside the directory that is being filled; gone when the block ends. Where something cut
    it short it shares that directory's fate, as the same command may go on with them."""
    store = Scratch(directory / f".{name}", f"{name}:", executor, journal)
    try:
        yield store
    except MocompError:
        store.close()
        raise
    store.close()


def fill(job: Job, candidates: list[Candidate], notes: list[str], judged: bool = False) -> list[Quality]:
    """Quantise; returns what each candidate costs in quality, and adds to `notes` what there is to know of the data.

    The model is run over the data where an algorithm learns from it, data is given to judge by, or they are to be `judged`;
    else weights are all that is looked at, and no quality is told. Without a checkpoint there is nothing to do.
    """
    if job.checkpoint is None or not any(candidate.weights for candidate in candidates):
        return []
    read = job.checkpoint.read
    if not (judged or job.options.calibration or any(candidate.algorithm.calibrated for candidate in candidates)):
        for candidate in candidates:
            _unseen(job.program, read, candidate)
        return []
    rows, learned = rows_for(job.source, job.interface, job.options, notes)
    visited = quantisable(job.program, {name for candidate in candidates for name in candidate.weights})
    quantiser = Quantiser(job.program, read, candidates, rows, learned)
    sizes = [len(next(iter(row.values()))) for row in rows]
    count = sum(size for size, told in zip(sizes, learned, strict=True) if told)
    judges = sum(sizes) - count
    terminal.say(f"calibration: {count} rows to learn from, {judges} held out")
    Walk(job.program, read, visited, 1 + len(candidates)).run(rows, quantiser)
    qualities = [candidate.quality() for candidate in candidates]
    for quality in qualities:
        quality.data = f"{judges or count} rows of {job.options.calibration or 'random tokens'}"
    return qualities


def _unseen(program: Program, read: Any, candidate: Candidate) -> None:
    """Weights alone, in parts."""
    store, algorithm = candidate.store, candidate.algorithm
    if store is None:
        return
    parts = (
        part
        for name, weight in candidate.weights.items()
        for part in quantised(program.recipes[name], read, weight, algorithm, store)
    )
    total = sum(program.recipes[name].nbytes for name in candidate.weights)
    with terminal.progress(f"quantising with {algorithm.name}", total) as advance:
        complete(parts, store.executor, store.journal, advance)
