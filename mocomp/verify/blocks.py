"""Each mixture alone: the original's, on what really came to it, against the artifact's.

The artifact's experts are given the original's own choice, and one of ours that reaches every expert; then its router and its
experts together are given the same tokens, so that a choice in one layer is judged whatever was chosen in those before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from mocomp.deployment import Deployment
from mocomp.executors import Executor
from mocomp.lowering.graph_parts import part_of
from mocomp.lowering.onnx_session import runs, session
from mocomp.targets import Mixture, Target
from mocomp.verify.experts_alone import errors_on
from mocomp.verify.measures import relative_error
from mocomp.verify.parity import LayerResult, judge_choice
from mocomp.verify.quality import mean_error
from mocomp.verify.released import give_back
from mocomp.verify.streamed import Passed


@dataclass(frozen=True)
class Block:
    """One mixture of the artifact in `directory`, to be run alone on what `passed` says that the original did; `weights` are
    the bytes of its experts in float32. A task of executors."""

    kind: type[Target]
    deployment: Deployment
    directory: Path
    mixture: Mixture
    passed: Passed
    margin: float
    weights: int

    @property
    def nbytes(self) -> int:
        return 2 * self.weights

    def __call__(self) -> tuple[LayerResult, float | None]:
        """(what was found, the relative error of the experts to those of the checkpoint's own weights, if these are others)"""
        target, before = self.kind(self.deployment), self.passed.before
        runner = target.open_mixture(self.directory, self.mixture, exact=True)
        found = LayerResult(self.mixture.layer)
        found.experts_error = errors_on(runner, self.mixture, [self.passed.seen, self.passed.forced])
        cost = None if before is None else mean_error(runner, before)
        del runner
        self._with_router(target, found)
        give_back()
        return found, cost

    def _with_router(self, target: Target, found: LayerResult) -> None:
        """Run router and experts on the tokens that came to the original's."""
        opened = target.graph(self.directory, exact=True)
        m, seen = self.mixture, self.passed.seen
        if opened is None or (single := _block(opened[0], m)) is None:
            return
        run = runs(session(ir.to_proto(single).SerializeToString(), self.directory, opened[1], lean=True), opened[1])
        got = run({single.graph.inputs[0].name: seen.x.astype(np.float32)})  # type: ignore[dict-item]
        differs = judge_choice(found, m, seen, got, np.ones(len(seen.x), bool), self.margin)
        # the fused operator divides the weights by their sum, and what stands behind it multiplies by that again
        total = 1.0 if m.ids else seen.weights.sum(-1, keepdims=True)
        found.alone = relative_error((got[m.y] * total)[~differs], seen.y[~differs])


def run_blocks(blocks: Iterable[Block], executor: Executor | None) -> Iterator[tuple[Block, LayerResult, float | None]]:
    """What each block does. In this process one after the other, each before the next layer of the original is read; other
    executors run them where they have room."""
    here = executor is None or executor.name == "local"
    results = ((block, block()) for block in blocks) if executor is None or here else executor.run(blocks)
    for block, (found, cost) in results:
        yield block, found, cost


def _block(model: ir.Model, m: Mixture) -> ir.Model | None:
    """The part of a graph that makes of x what tells which experts are chosen, and y; None where it takes more than x."""
    try:
        single = part_of(model, [m.x], list(dict.fromkeys([*m.tells, m.y])))
    except ValueError:
        return None
    for value in [*single.graph.inputs, *single.graph.outputs]:
        value.dtype = value.dtype or ir.DataType.FLOAT
    return single
