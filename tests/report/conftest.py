"""The artifact that the page is tested on: the digits model, and the results of every later command beside a copy of it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mocomp.options import ConvertOptions
from mocomp.pipeline import convert
from tests.report import samples

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "checkpoint"


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The digits model for ONNX Runtime, proven. Not to be written to."""
    directory = tmp_path_factory.mktemp("digits") / "artifact"
    convert(str(DIGITS), directory, ConvertOptions())
    return directory


@pytest.fixture
def artifact(digits, tmp_path) -> Path:
    """A copy that a test may write to, with what `mocomp convert` found and nothing of later commands."""
    return shutil.copytree(digits, tmp_path / "artifact", ignore=shutil.ignore_patterns("report.html"))


@pytest.fixture
def edit(artifact) -> Callable[..., None]:
    """edit("mocomp.json", **fields): the file with some of its fields changed, or written if it was not there."""

    def changed(name: str, **fields: object) -> None:
        path = artifact / name
        data = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(data | fields))

    return changed


@pytest.fixture
def full(artifact, edit) -> Path:
    """The copy with everything that there can be."""
    edit("mocomp.json", latency=samples.latency(), tuning=samples.tuning())
    edit("bench.json", **samples.bench())
    edit("usage.json", **samples.usage())
    edit("eval.json", **samples.evaluation())
    edit("bisect.json", **samples.bisect(passed=True))
    return artifact
