"""The report of a conversion: dataclasses -> mocomp.json -> the table on the terminal."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mocomp.deployment import Deployment
from mocomp.errors import BadInput, Usage
from mocomp.models.interface import Interface
from mocomp.models.user.likeness import Likeness
from mocomp.passes import Receipt
from mocomp.report.expert_parallel import ExpertParallel
from mocomp.report.recognised import Recognised
from mocomp.targets import Artifact, Mixture
from mocomp.tuning import Tuning
from mocomp.verify.parity import Parity
from mocomp.verify.quality import Quality
from mocomp.weights import disk
from mocomp.weights.identity import versions
from mocomp.weights.json_files import read_object
from mocomp.weights.linking import LinkedFile

NAME, RECEIPT = "mocomp.json", "receipt.json"


@dataclass
class Report:
    """Everything needed to believe an artifact and to make it again."""

    source: str
    source_files: dict[str, int]
    model: dict[str, Any]
    options: dict[str, Any]
    target: dict[str, Any]
    interface: Interface
    passes: list[Receipt]
    artifact: Artifact
    seconds: dict[str, float]
    memory: dict[str, float]
    parity: Parity | None = None
    quality: list[Quality] = field(default_factory=list)
    latency: dict[str, Any] = field(default_factory=dict)
    tuning: Tuning | None = None
    expert_parallel: ExpertParallel | None = None
    recognised: list[Recognised] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    linked: dict[str, LinkedFile] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: versions())

    def write(self, directory: Path) -> None:
        disk.write_text(directory / NAME, json.dumps(as_json(self), indent=1) + "\n")


def as_json(report: Report) -> dict[str, Any]:
    """The report as mocomp.json holds it, with the verdict's figures spelled out."""
    data = dataclasses.asdict(report)
    if report.parity is not None:
        parity = report.parity
        data["parity"] |= {"passed": parity.passed, "worst": parity.worst, "agreement": parity.agreement}
    data["quality"] = [quality.as_json() for quality in report.quality]
    return data


def as_line(directory: Path, name: str) -> str:
    """What was written under that name, with its checksums, as one line of JSON."""
    return json.dumps(json.loads((directory / name).read_text()))


def read(directory: Path, trust_remote_code: bool = False) -> dict[str, Any]:
    """`recorded`, to act by: that who made the artifact trusted the source's code says nothing of who has it now."""
    data = recorded(directory)
    data["options"]["trust_remote_code"] = trust_remote_code
    return data


def recorded(directory: Path) -> dict[str, Any]:
    """The report of an artifact. Raises BadInput when there is none or it is not readable."""
    path = directory / NAME
    if not path.exists():
        raise BadInput(f"no {NAME}", where=str(directory), fix="Point at a directory that mocomp convert wrote.")
    data: dict[str, Any] = {"recognised": []} | read_object(path)  # which earlier versions did not tell
    if not {field.name for field in fields(Report)} <= data.keys():
        raise BadInput("not a report of mocomp convert, or of another version", where=str(path), fix="Convert again.")
    try:
        _refuse_odd(data)
    except (TypeError, ValueError, KeyError, AttributeError, Usage) as error:
        why = f"not a report of mocomp convert: {type(error).__name__}: {error}"
        raise BadInput(why, where=str(path), fix="Convert again.") from error
    return data


def _refuse_odd(data: dict[str, Any]) -> None:
    """Raises TypeError, ValueError, KeyError, AttributeError or Usage where what is read of a report has another form."""
    interface_from(data)
    artifact_from(data)
    [Recognised(**one) for one in data["recognised"]]
    texts = (data["source"], data["target"]["target"], data["options"]["task"], data["options"]["weights"])
    if not all(isinstance(text, str) for text in texts) or not all(isinstance(s, int) for s in data["source_files"].values()):
        raise TypeError("a text or a size is of another type")
    Deployment.of(data["options"])


def interface_from(data: dict[str, Any]) -> Interface:
    """The interface that a report was written with; JSON has neither tuples nor numbers for keys."""
    raw = data["interface"]
    axes = {name: {int(i): axis for i, axis in dims.items()} for name, dims in raw["axes"].items()}
    past = [tuple(layer) for layer in raw["past"]]
    like = {name: Likeness(**{**one, "shape": tuple(one["shape"])}) for name, one in raw.get("like", {}).items()}
    return Interface(**{**raw, "axes": axes, "past": past, "image": tuple(raw["image"]), "like": like})


def artifact_from(data: dict[str, Any]) -> Artifact:
    """The artifact that a report belongs to."""
    raw = data["artifact"]
    mixtures: list[dict[str, Any]]
    mixtures = [{name: tuple(v) if isinstance(v, list) else v for name, v in mixture.items()} for mixture in raw["mixtures"]]
    return Artifact(**{**raw, "mixtures": [Mixture(**mixture) for mixture in mixtures]})


@dataclass
class CheckpointReceipt:
    """What was made of what, and whether the model still computes the same; `moved` is the largest relative error of any
    output over all cases, with the reason why it moved when it was not to be the same; `tokens` says of which ones it is
    the error, when not of all."""

    command: str
    source: str
    options: dict[str, Any]
    model: str
    loads_as: str
    mixtures: int
    experts: int
    parameters: int
    parameters_before: int
    plan: dict[str, Any] | None
    changes: str = ""
    moved: float | None = None
    kl: float | None = None
    tokens: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def preserved(self) -> bool:
        return not self.changes

    def write(self, directory: Path) -> None:
        disk.write_text(directory / RECEIPT, json.dumps(dataclasses.asdict(self), indent=1) + "\n")
