"""What a proof is about."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mocomp.models.interface import Interface
from mocomp.models.source import Source
from mocomp.targets import Artifact, Target


@dataclass
class Converted:
    """An artifact in a directory, the target that opens it, and the source that it is held against."""

    source: Source
    interface: Interface
    target: Target
    directory: Path
    artifact: Artifact
