"""mocomp carve: divide the feed-forward blocks of a dense model into experts, and prove that nothing was lost."""

from __future__ import annotations

from pathlib import Path

from mocomp.calibration.capture import observed
from mocomp.checkpoints import chosen, finish, opened
from mocomp.fill.carve import Carve
from mocomp.opening import as_asked
from mocomp.options import CarveOptions
from mocomp.report import RECEIPT, CheckpointReceipt
from mocomp.resources import Resources
from mocomp.weights.output import new_directory


def carve(source_name: str, output: Path, options: CarveOptions, resources: Resources | None = None) -> CheckpointReceipt:
    """DENSE with its feed-forward blocks divided into experts, of which a token goes through some."""
    with (
        new_directory(output, options.force, RECEIPT, resources, as_asked("carve", options, source_name)) as made,
        opened(source_name, options) as dense,
    ):
        fill = Carve(options.experts, options.shared, options.top_k, options.method, dense.read, options.seed)
        blocks = chosen(dense.blocks, options.layers)
        for block in blocks:
            fill.width(block)
        names = [block.enter for block in blocks]
        memory = made.executor.resources.nbytes()
        seen, notes = observed(dense.source, dense.traced.interface, names, options.calibration, options.seed, memory=memory)
        filled = [fill(block, seen[block.enter].x) for block in blocks]
        return finish("carve", dense, filled, None, options, made, notes=notes)
