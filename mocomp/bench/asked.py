"""The artifact that a benchmark is of: what it can be asked, what it is fed, and what a run of it cannot do without."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from mocomp import report as reports
from mocomp.bench import drawn_inputs
from mocomp.bench.points import Mix, Point, Wanted, grid
from mocomp.bench.prepared import Prepared, prepare
from mocomp.bench.roofline import Work
from mocomp.bench.work import Counter, Weights, cache_bytes, of_graph
from mocomp.errors import Unsupported
from mocomp.models.interface import Interface
from mocomp.models.source import Source, open_source
from mocomp.plans import modality as modalities
from mocomp.plans.modality import Modality
from mocomp.targets import Artifact, Runner, Target
from mocomp.verify.inputs import longest_of, with_modality
from mocomp.verify.parity import inner_values


@dataclass
class Asked:
    """An artifact with its report, `data`; `source` is as its own config.json says, so it may have been moved away from it."""

    directory: Path
    data: dict[str, Any]
    target: Target
    source: Source
    interface: Interface
    artifact: Artifact
    modality: Modality | None
    notes: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, directory: Path, data: dict[str, Any], target: Target, modality: tuple[str, ...], names: list[str]) -> Asked:
        """`modality` are NAME=SPEC texts for modalities `names`, for a model that was not told them when it was made."""
        options = data["options"]
        place = data["source"] if options["trust_remote_code"] else str(directory)  # only the source has its code
        source = open_source(place, options["trust_remote_code"], options["task"])
        told = source.plan.modality if source.plan is not None else None
        if modality:
            told = modalities.parse(list(dict.fromkeys(names)), list(modality), None, source.config)
        interface = reports.interface_from(data)
        return cls(directory, data, target, source, interface, reports.artifact_from(data), told)

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """The mixes of a model whose modalities are known."""
        return drawn_inputs.even(self.modality)

    def points(self, wanted: Wanted) -> tuple[list[Point], list[str]]:
        """The points asked for that the model has positions for, and notes on the others."""
        return grid(self.interface.kind, longest_of(self.source.config, with_modality(self.source.plan)), wanted)

    def prepare(self, point: Point, seed: int, place: Path) -> Prepared:
        """A point with its inputs in a file, after the artifact ran on them."""
        drawn = with_modality(self.source.plan)
        given = drawn_inputs.inputs_of(self.interface, point, seed, drawn, self.modality)
        return prepare(self._runner, self.artifact.mixtures, self.interface, point, given, place)

    def work(self, at: Prepared, stored: bool) -> Work:
        """What a run at a point cannot do without, on the weights as they are `stored` in the artifact or in float32."""
        weights = self._stored if stored else self._float
        tokens = at.point.tokens
        read = None if weights is None else weights.read(tokens, at.distinct) + cache_bytes(self.interface, at.point)
        return Work(read, None if self._counter is None else self._counter.flop(at.point))

    def release(self) -> None:
        """Let go of the opened artifact, so that nothing of this process disturbs a timing."""
        self.__dict__.pop("_runner", None)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the artifact's weights that runs read."""
        weights = self._stored or self._float
        return self.artifact.weight_bytes if weights is None else weights.total

    @cached_property
    def _runner(self) -> Runner:
        return self.target.open(self.directory, inner_values(self.artifact.mixtures))

    @cached_property
    def _stored(self) -> Weights | None:
        return of_graph(self.directory, self.artifact.mixtures)

    @cached_property
    def _float(self) -> Weights | None:
        if self._counter is None:
            return None
        usual = getattr(self.source.config.get_text_config(), "num_experts_per_tok", None)
        return self._counter.weights({m.layer: m.k for m in self.artifact.mixtures}, usual)

    @cached_property
    def _counter(self) -> Counter | None:
        try:
            return Counter(self.source, self.interface)
        except Unsupported as error:
            self.notes.append(f"operations are not counted: {error.what}")
            return None
