"""What tests share: tiny checkpoints and their conversions, each made once per session and only when asked for."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from mocomp.options import ConvertOptions
from mocomp.report import Report
from tests import checkpoints


@dataclass(frozen=True)
class Converted:
    """A checkpoint, the artifact that `mocomp.pipeline.convert` made of it, and its report."""

    source: Path
    directory: Path
    report: Report


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Callable[..., Path]:
    """checkpoint(family, **changes): the directory of `checkpoints.make`."""

    @cache
    def made(family: str, **changes) -> Path:
        return checkpoints.make(family, tmp_path_factory.mktemp(family), **changes)

    return made


@pytest.fixture(scope="session")
def converted(tmp_path_factory, checkpoint) -> Callable[..., Converted]:
    """converted(family, **changes): that checkpoint as an artifact for ONNX Runtime, parity included."""
    from mocomp.pipeline import convert

    @cache
    def made(family: str, **changes) -> Converted:
        source = checkpoint(family, **changes)
        directory = tmp_path_factory.mktemp(f"{family}-artifact") / "artifact"
        return Converted(source, directory, convert(str(source), directory, ConvertOptions()))

    return made
