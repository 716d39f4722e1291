"""mocomp parity: prove an artifact that stands."""

from __future__ import annotations

from pathlib import Path

from mocomp import report as reports
from mocomp.errors import BadInput
from mocomp.models.source import open_source
from mocomp.pipeline import open_target
from mocomp.verify.parity import Parity
from mocomp.verify.verdict import verify


def parity(directory: Path, source_name: str | None, seed: int) -> Parity:
    """Prove again an artifact that stands, against the source it was made from or another."""
    data = reports.read(directory)
    options = data["options"]
    if options["weights"] == "none":
        raise BadInput("it is a graph without weights", where=str(directory), fix="Convert again with --weights all.")
    if source_name is None and not Path(data["source"]).exists():
        raise BadInput("no such directory", where=data["source"], fix="Say with --reference where the source is now.")
    source = open_source(source_name or data["source"], options["trust_remote_code"], options["task"])
    changed = [n for n, size in data["source_files"].items() if _size(source.directory / n) != size] if not source_name else []
    if changed:
        raise BadInput(
            f"{changed[0]} is not the file that the artifact was made from",
            where=str(source.directory),
            fix="Convert again, or name the source that it was made from with --reference.",
        )
    target = open_target(data["target"]["target"], data["options"].get("accuracy_level", 0))
    interface, artifact = reports.interface_from(data), reports.artifact_from(data)
    return verify(source, interface, target, directory, artifact, seed, [], another=source_name is not None)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1
