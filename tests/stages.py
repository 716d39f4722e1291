"""The conversion of `mocomp.pipeline` in steps, so that a test can look, or tamper, in between."""

from pathlib import Path

from mocomp.ir.program import Program
from mocomp.models.huggingface import Traced
from mocomp.models.source import open_source
from mocomp.opening import open_target
from mocomp.passes import run
from mocomp.pipeline import explicit, fitted, load
from mocomp.weights.checkpoint import Checkpoint

TARGET = open_target("onnxruntime")


def load_traced(directory: Path) -> Traced:
    """The program of a checkpoint before any pass."""
    with Checkpoint(directory) as opened:
        return load(open_source(str(directory)), opened)


def advance(program: Program, last: str, after: str = "") -> None:
    """Run the passes of a conversion behind `after` (from the first when empty) up to and with `last`."""
    steps = [*explicit([]), *fitted(TARGET, {})]
    names = [step.name for step in steps]
    first = names.index(after) + 1 if after else 0
    for step in steps[first : names.index(last, first) + 1]:
        run(step, program)
