"""`mocomp convert --expert-parallel N`: what it asks for, and the ranks beside the artifact.

Dimension letters: L mixtures, E experts of one, N ranks.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mocomp import terminal
from mocomp.capability import Gap
from mocomp.ir.program import Program
from mocomp.ir.rewrite import MOCOMP, calls, scope
from mocomp.lowering.ranks_files import shared_bytes, write
from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.options import ConvertOptions
from mocomp.placement import measured
from mocomp.placement.placing import place
from mocomp.placement.traffic import Places, Traffic, blocks, crossing, imbalance, loads, round_robin
from mocomp.report.expert_parallel import ExpertParallel, Predicted
from mocomp.targets import Artifact, Target
from mocomp.weights.output import Output


def gaps(target: Target, program: Program, before: Program, options: ConvertOptions) -> list[Gap]:
    """Why a program cannot be cut for the ranks that are asked for; `before` it was fitted to its target, all its mixtures were
    there to see. Asked before any long work. Raises BadInput where the file of --usage is of another model."""
    if not options.expert_parallel:
        return []
    nodes = calls(before, MOCOMP.experts.default)
    layers, experts = [scope(node) for node in nodes], [int(node.args[3].meta["val"].shape[0]) for node in nodes]  # type: ignore[union-attr]
    if not nodes:
        return [Gap("the model", "it has no mixture of experts to share out", "leave out --expert-parallel")]
    if options.usage:
        measured.from_file(Path(options.usage), layers, experts)
    few = [
        Gap(layer, f"it has {count} experts, and --expert-parallel {options.expert_parallel} asks for as many ranks or more")
        for layer, count in zip(layers, experts, strict=True)
        if count < options.expert_parallel
    ]
    return few + target.rank_gaps(program, layers)


def write_ranks(
    options: ConvertOptions, source: Source, interface: Interface, target: Target, artifact: Artifact, made: Output
) -> ExpertParallel | None:
    """Place the experts of the artifact in `made`, and write its ranks; None where none are asked for."""
    if not (ranks := options.expert_parallel):
        return None
    graphs = target.rank_graphs(made.path, artifact)
    layers, experts = [seam.layer for seam in graphs.seams], [seam.experts for seam in graphs.seams]
    traffic, told = Traffic.unknown(layers, experts), ""
    if options.usage:
        traffic, told = measured.from_file(Path(options.usage), layers, experts), f"the usage in {Path(options.usage).name}"
    elif options.calibration:
        memory = made.executor.resources.nbytes()
        found = measured.from_data(source, interface, options.calibration, options.seed, layers, experts, memory)
        traffic, told = found, f"usage on {Path(options.calibration).name}"
    with terminal.phase("placing experts"):
        placed = place(traffic, ranks)
    held = [[np.flatnonzero(of == rank).tolist() for rank in range(ranks)] for of in placed.places]
    common, own = shared_bytes(graphs)
    with terminal.progress("ranks", common * ranks + own) as advance:
        files = write(graphs, made.path, held, lambda read: made.writer(read, advance))
    plain = {"placed": placed.places, "round_robin": round_robin(experts, ranks), "blocks": blocks(experts, ranks)}
    return ExpertParallel(
        ranks=ranks,
        layers=layers,
        experts=held,
        method=placed.method,
        usage=told if traffic.total else "",
        predicted={name: predicted(traffic, places, ranks) for name, places in plain.items()},
        share={name: _share(parts, placed.places, ranks) for name, parts in traffic.modalities.items()},
        bytes_of_rank=[sum((made.path / f).stat().st_size for f in files if f.startswith(f"rank_{i}/")) for i in range(ranks)],
        files=files,
        notes=placed.notes,
    )


def predicted(traffic: Traffic, places: Places, ranks: int) -> Predicted:
    """What a placement would do with the traffic that was measured."""
    crossed = crossing(traffic, places)
    return Predicted(crossed, crossed / max(traffic.total, 1), imbalance(traffic, places, ranks))


def _share(load: list[np.ndarray], places: Places, ranks: int) -> list[float]:
    """[N]: the part of all choices that each rank has, over all layers."""
    every = np.sum([loads(own, of, ranks) for own, of in zip(load, places, strict=True)], axis=0)
    return [float(count / max(every.sum(), 1)) for count in every]
