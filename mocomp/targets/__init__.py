"""Targets: what a program is lowered to, and how the result is opened again to be proven.

To add one, add a file with a class derived from `Target`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from mocomp.capability import Gap
from mocomp.deployment import Deployment
from mocomp.errors import Usage
from mocomp.ir.program import Program
from mocomp.lowering.ranks_graph import RankGraphs
from mocomp.models.source import Source
from mocomp.passes import Pass
from mocomp.quant.formats import Format
from mocomp.registry import discover
from mocomp.weights.writer import Writer

Arrays = dict[str, np.ndarray]
DEFAULTS: dict[str, Any] = {option.name: option.default for option in fields(Deployment)}
"""What a deployment is where nothing is said."""


@dataclass(frozen=True)
class Mixture:
    """Where a layer's mixture stands in an artifact: the names of the values around its experts.

    `logits` [T, E] are what the fused operator takes the K largest of, and whose softmax over these K are its weights;
    `choice` [T, E] are the scores by which these K were chosen, often the same; `x` and `y` [T, H] go in and come out. Where
    `ids` [T, K] are named, they are the chosen, and nothing is known of `logits`.
    `bank` names the experts' weights, (w_in, w_out), where they are packed; `limits` are the token counts after which the
    experts run in another way than before.
    """

    layer: str
    x: str
    choice: str
    logits: str
    y: str
    k: int
    bank: tuple[str, ...] = ()
    limits: tuple[int, ...] = ()
    ids: str = ""

    @property
    def tells(self) -> list[str]:
        """The values that tell which experts are chosen, and how narrowly."""
        return list(dict.fromkeys((self.choice, self.ids or self.logits)))

    def chosen(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """ids [T, K] by what was seen of the values that tell."""
        if self.ids:
            return values[self.ids]
        return np.argpartition(-values[self.logits], self.k - 1, axis=-1)[:, : self.k]


@dataclass
class Artifact:
    """What lowering left behind: sizes, and where to look when the numbers are checked.

    `formats` are those of quantised weights by name, `linears` the modules of those that are of linear layers, `banks` the
    names of the weights (of w_in, of w_out) of quantised mixtures that are not among `mixtures`, by layer.
    """

    files: list[str]
    nodes: int
    weight_bytes: int
    mixtures: list[Mixture] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)
    formats: dict[str, str] = field(default_factory=dict)
    linears: dict[str, str] = field(default_factory=dict)
    banks: dict[str, list[str]] = field(default_factory=dict)


class Runner(ABC):
    """An opened artifact."""

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> Arrays:
        """All outputs by name."""


class MixtureRunner(Runner):
    """One layer's experts: x [T, H], ids [T, K] and weights [T, K] in, y [T, H] out; `experts` is E."""

    experts: int


class Target(ABC):
    """A kind of artifact."""

    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    mixes_projections: ClassVar[bool] = False
    """Whether the two weights of a layer's experts may have different formats."""
    reads: ClassVar[frozenset[str]] = frozenset()
    """The fields of `Deployment` that mean something to it."""
    reads_on_gpu: ClassVar[frozenset[str]] = frozenset()
    """Those of them that do so with `device` cuda alone."""
    in_parts: ClassVar[bool] = False
    """Whether its artifacts have a `graph`, so that they can be run in parts."""
    links: ClassVar[bool] = False
    """Whether its artifacts can read weights from files of the checkpoint (`weights/linking.py`)."""
    tunes: bool = False
    """Whether there are several ways in which its mixtures can run, to choose from by timing."""

    def __init__(self, deployment: Deployment | None = None):
        """Raises Usage for a choice that this target does not offer."""
        self.deployment = deployment or Deployment()
        unread = [name for name in self._unread(self.deployment) if getattr(self.deployment, name) != DEFAULTS[name]]
        if unread:
            option = "--profile" if unread[0] == "profiles" else f"--{unread[0].replace('_', '-')}"
            raise Usage(f"{option}, and target {self.name} has no use for it", fix=f"It is for {_readers(unread[0])}.")

    @classmethod
    def reading(cls, deployment: Deployment) -> Deployment:
        """A deployment without what this target does not read."""
        own = Deployment(**{name: getattr(deployment, name) for name in DEFAULTS})
        return replace(own, **{name: DEFAULTS[name] for name in cls._unread(own)})

    @classmethod
    def _unread(cls, deployment: Deployment) -> list[str]:
        unread = cls.reads_on_gpu if deployment.device == "cpu" else frozenset()
        return [name for name in DEFAULTS if name not in cls.reads or name in unread]

    @property
    def accuracy_level(self) -> int:
        """How far operators may round activations for speed, in ONNX Runtime's numbers; 0 is not at all."""
        return self.deployment.accuracy_level

    @abstractmethod
    def missing(self) -> str | None:
        """Why this target cannot run here, with the command that helps; None when it can."""

    def knowing(self, source: Source, program: Program) -> Target:
        """This target for one source and its program, as it was before weights were packed; to most they are all alike."""
        return self

    @abstractmethod
    def passes(self) -> list[Pass]:
        """The passes that fit a program to this target."""

    @abstractmethod
    def gaps(self, program: Program) -> list[Gap]:
        """Every op, type or layout of the program, as the passes left it, that this target cannot take as it stands; asked
        before any long work. Those that do not block say what is done instead."""

    def notes(self, program: Program) -> list[str]:
        """What a user should know of the artifact of a program, and no gap keeps it from being made."""
        return []

    @abstractmethod
    def lower(self, program: Program, directory: Path, writer: Writer | None) -> Artifact:
        """Write the program into `directory`; without weights when there is no `writer`."""

    @abstractmethod
    def open(self, directory: Path, expose: list[str] | None = None, exact: bool = False) -> Runner:
        """The artifact ready to run; `expose` names inner values to return as well.

        `exact` has operators compute on activations as they are where they would round them for speed, and can do without.
        """

    def graph(self, directory: Path, exact: bool = False) -> tuple[Any, str] | None:
        """What `open` runs, as an `onnx_ir.Model` that may be cut up, and the device that it runs on; None where it is nothing
        of the kind."""
        return None

    def rank_gaps(self, program: Program, layers: list[str]) -> list[Gap]:
        """Why the program, as the passes left it, cannot be cut at the mixtures of `layers` for ranks."""
        return [Gap(f"target {self.name}", "it has no graphs of ranks", "take --target onnxruntime or onnx, on the CPU")]

    def rank_graphs(self, directory: Path, artifact: Artifact) -> RankGraphs:
        """The artifact cut at its mixtures."""
        raise NotImplementedError(f"{self.name} has no graphs of ranks")

    def longest(self, directory: Path) -> int | None:
        """The positions that the artifact was made for, where that is fewer than the model may have."""
        return None

    def takes(self, directory: Path) -> Callable[[int, int, int], bool]:
        """Whether the artifact runs a call of so many (sequences, tokens of each, positions before them)."""
        return lambda batch, sequence, past: True

    def open_mixture(self, directory: Path, mixture: Mixture, exact: bool = False) -> MixtureRunner:
        """One layer's experts alone."""
        raise NotImplementedError(f"{self.name} has no fused experts")

    def weights(self, directory: Path, mixture: Mixture) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(expert, w_in [F or 2F, H] gate rows then up rows, w_out [H, F]) of a layer, float32, read from the artifact."""
        raise NotImplementedError(f"{self.name} has no fused experts")

    def bank_weights(self, directory: Path, banks: dict[str, list[str]]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """(layer, w_in [E, F or 2F, H] gate rows then up rows, w_out [E, H, F]) of each of `Artifact.banks`, float32, read from
        the artifact."""
        raise NotImplementedError(f"{self.name} has operators for all experts")

    def linear_weights(self, directory: Path) -> dict[str, np.ndarray]:
        """The weight [N, K] float32 of each quantised linear layer by its name, read from the artifact."""
        return {}

    def obstacle(self, stored: list[tuple[Format, tuple[int, ...]]]) -> str | None:
        """Why it cannot compute on weights of these formats and shapes as they stand, or None.

        They are both of a layer's experts (w_in, w_out), or one of a linear layer.
        """
        return f"{self.name} computes on floats"

    def rounds_activations(self, form: Format) -> bool:
        """Whether its operators round the activations of weights in this format, whatever is asked of them."""
        return False

    def notes_of_run(self, directory: Path, inputs: Mapping[str, np.ndarray]) -> list[str]:
        """What a user should know of how the artifact runs on this machine, on these inputs."""
        return []

    def describe(self) -> dict[str, Any]:
        """Versions and settings for the report."""
        return {"target": self.name}


def _readers(option: str) -> str:
    """The targets that read a field of `Deployment`, in words."""
    known = [target for target in discover("mocomp.targets", "Target").values() if option in target.reads]  # type: ignore[attr-defined]
    return ", ".join(f"{target.name}{' with --device cuda' if option in target.reads_on_gpu else ''}" for target in known)
