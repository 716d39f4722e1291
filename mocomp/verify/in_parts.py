"""The verdict without a whole model in memory: original and artifact are run part by part, and each mixture alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mocomp import terminal
from mocomp.errors import Unsupported
from mocomp.executors import Executor
from mocomp.lowering.parts_session import PartsSession
from mocomp.verify import stored
from mocomp.verify.blocks import Block, run_blocks
from mocomp.verify.converted import Converted
from mocomp.verify.inputs import arrays, cases, left_out, longest_of, with_modality
from mocomp.verify.parity import LayerResult, Parity, Parts, inner_values, prove
from mocomp.verify.quality import Quality, judge_answers
from mocomp.verify.reference import Baseline, Reference
from mocomp.verify.released import give_back
from mocomp.verify.streamed import Given, StreamedReference
from mocomp.verify.streamed_artifact import answers_of
from mocomp.verify.tolerance import tolerance_of
from mocomp.weights.checkpoint import Checkpoint

LIMIT = 256 << 20
"""Bytes of weights, in float32, up to which parts of an artifact's graph are run together."""
HOW = (
    "proven in parts: end to end on the same cases, the original with one layer's weights in memory, the artifact with those "
    "of a part of its graph; and each mixture alone, on what came to it and on tokens sent to every expert"
)


def verify_in_parts(
    made: Converted,
    seed: int,
    quality: list[Quality],
    another: bool = False,
    executor: Executor | None = None,
    limit: int = LIMIT,
) -> Parity:
    """As `verdict.verify`, with nobody's weights whole in memory, and nothing timed; what quantisation, or 16 bits, cost is
    added to `quality`. `executor` runs the mixtures alone, `limit` is that of the parts of the artifact's graph.

    Raises Unsupported where the artifact is no graph that can be cut, or the original cannot be run in parts.
    """
    return _Proof(made, executor, limit).verify(seed, quality, another)


@dataclass
class _Proof:
    made: Converted
    executor: Executor | None
    limit: int

    def verify(self, seed: int, quality: list[Quality], another: bool) -> Parity:
        session = self._session()
        drawn, takes = with_modality(self.made.source.plan), self.made.target.takes(self.made.directory)
        ends = [longest_of(self.made.source.config, drawn), self.made.target.longest(self.made.directory)]
        longest = min((end for end in ends if end is not None), default=None)
        given = [(case, arrays(self.made.interface, case, seed, drawn)) for case in cases(self.made.interface, longest, takes)]
        before, baseline, blocks, costs = self._original(given)
        give_back()
        parts = Parts(answers_of(session, baseline), blocks)
        if before is not baseline:
            own = Quality("artifact", "", [], data="the cases of parity")
            known = [m for m in self.made.artifact.mixtures if m.layer in costs]
            quality.append(judge_answers(own, before, [last for _, last in parts.answers], known, costs))
        tolerance = tolerance_of(self.made.target, self.made.artifact)
        parity = prove(
            baseline,
            self.made.target,
            self.made.directory,
            self.made.artifact.mixtures,
            tolerance,
            seed=seed,
            another=another,
            exact=True,
            parts=parts,
        )
        parity.notes = [HOW, *self._notes(blocks), *parity.notes]
        parity.notes += left_out(cases(self.made.interface, ends[0]), [case for case, _ in given])
        return parity

    def _session(self) -> PartsSession:
        opened = self.made.target.graph(self.made.directory, exact=True)
        if opened is None:
            raise Unsupported(
                f"an artifact of target {self.made.target.name} cannot be run part by part, and does not fit into memory whole",
                where=str(self.made.directory),
                fix="Prove it on a larger machine with `mocomp parity DIR`, and convert here with --parity off.",
            )
        return PartsSession(opened[0], self.made.directory, opened[1], inner_values(self.made.artifact.mixtures), self.limit)

    def _original(self, given: Given) -> tuple[Baseline, Baseline, dict[str, LayerResult], dict[str, float]]:
        """(what the original does on its own weights, and on those that the artifact was to be made of; what was found of each
        mixture alone; what its experts lose by their weights)"""
        changed = stored.changes(self.made.target, self.made.artifact)
        with Checkpoint(self.made.source.directory) as checkpoint:
            reference = StreamedReference(self.made.source, self.made.interface, checkpoint, self._put if changed else None)
            if changed:
                reference.round_to(self.made.target.deployment.dtype)
            ended: list[tuple[Baseline, Baseline]] = []
            with terminal.progress("parity: the original, layer by layer", len(reference.experts), "layers") as advance:
                blocks, costs = {}, {}
                for block, found, cost in run_blocks(self._blocks(reference, given, ended), self.executor):
                    terminal.stop_if_interrupted()
                    blocks[block.mixture.layer] = found
                    costs |= {} if cost is None else {block.mixture.layer: cost}
                    advance(1)
        return (*ended[0], blocks, costs)

    def _put(self, reference: Reference, part: str) -> None:
        stored.put_part(reference, self.made.target, self.made.directory, self.made.artifact, part)

    def _blocks(self, reference: StreamedReference, given: Given, ended: list[tuple[Baseline, Baseline]]) -> Iterator[Block]:
        """The mixtures of the artifact, as the original comes through them; `ended` gets what `follow` returns."""
        mixtures = {m.layer: m for m in self.made.artifact.mixtures}
        margin = tolerance_of(self.made.target, self.made.artifact).margin
        following = reference.follow(given)
        while True:
            try:
                passed = next(following)
            except StopIteration as end:
                ended.append(end.value)
                return
            if (m := mixtures.get(passed.layer)) is None:
                continue
            weights = 4 * sum(w.numel() for experts in reference.mixtures[m.layer] for w in experts.parameters())
            yield Block(type(self.made.target), self.made.target.deployment, self.made.directory, m, passed, margin, weights)

    def _notes(self, blocks: dict[str, LayerResult]) -> list[str]:
        known = [m.layer for m in self.made.artifact.mixtures]
        without = [layer for layer in known if layer in blocks and blocks[layer].alone is None]
        named = f"{len(without)} of {len(known)} mixtures were run alone without their routers, which take more than they do"
        return [named] if without else []
