"""The same command makes the same bytes: in another process, with another order of sets, with any number of workers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mocomp.report.measured import without_measured
from tests.faults.conversion import content

SCRIPT = """
import sys
from pathlib import Path
from tests.faults import conversion
sources, output, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
for kind in conversion.KINDS:
    conversion.run(kind, sources, output / kind, workers)
"""


def made(sources: Path, output: Path, workers: int, seed: str) -> dict[str, dict]:
    """What a process with this seed of hashes makes."""
    from tests.faults.conversion import KINDS

    environment = os.environ | {"PYTHONHASHSEED": seed}
    subprocess.run(
        [sys.executable, "-c", SCRIPT, str(sources), str(output), str(workers)],
        env=environment, check=True, capture_output=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    return {kind: content(output / kind) for kind in KINDS}


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> tuple[Path, dict[str, dict]]:
    """(where the sources are, what one worker makes of them)."""
    from tests.faults.conversion import make_sources

    directory = tmp_path_factory.mktemp("same")
    make_sources(directory)
    return directory, made(directory, directory / "first", 1, "1")


@pytest.mark.parametrize(("workers", "seed"), [(5, "77"), pytest.param(2, "2", marks=pytest.mark.faults)])
def test_another_process_makes_the_same(first, tmp_path, workers, seed):
    sources, expected = first
    found = made(sources, tmp_path, workers, seed)
    for kind, files in expected.items():
        assert files.keys() == found[kind].keys()
        assert [name for name, value in files.items() if found[kind][name] != value] == []


def test_what_is_measured_is_all_that_may_differ():
    """A report with other weights is not the same but for what is measured."""
    report = {"seconds": {"trace": 1.0}, "passes": [{"name": "clean", "seconds": 0.1}], "files": {"report.html": 1, "a": 2}}
    other = json.loads(json.dumps(report).replace("0.1", "0.2").replace('"trace": 1.0', '"trace": 3.0'))
    assert report != other and without_measured(report) == without_measured(other)
    assert without_measured(report) != without_measured(report | {"files": {"a": 3}})
    assert without_measured(report) == {"passes": [{"name": "clean"}], "files": {"a": 2}}
