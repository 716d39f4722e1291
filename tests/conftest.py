"""What tests share: tiny checkpoints and their conversions, each made once per session and only when asked for."""

import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from mocomp.options import ConvertOptions
from mocomp.report import Report
from tests import checkpoints
from tests.gpu import hardware


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test marked `gpu` or `tensorrt` where what it needs is not here, and say which of it is missing."""
    for mark in hardware.NEEDS:
        if item.get_closest_marker(mark) and (reason := hardware.missing(mark)) is not None:
            pytest.skip(f"{mark}: {reason}")


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
    """converted(family, **changes): the artifact for ONNX Runtime of `checkpoint(family, **changes)`, parity included."""
    from mocomp.pipeline import convert

    @cache
    def made(family: str, **changes) -> Converted:
        source = checkpoint(family, **changes)
        directory = tmp_path_factory.mktemp(f"{family}-artifact") / "artifact"
        return Converted(source, directory, convert(str(source), directory, ConvertOptions()))

    return made


@pytest.fixture(scope="session")
def upcycled(tmp_path_factory, checkpoint) -> Callable[..., Path]:
    """upcycled(family, **options): `checkpoint(family)` with mixtures inserted as the options of upcycle say, unproven.

    `source` holds changes to the checkpoint, as pairs.
    """
    from mocomp.commands.upcycle import upcycle
    from mocomp.options import UpcycleOptions

    @cache
    def made(family: str, source: tuple = (), **options) -> Path:
        directory = tmp_path_factory.mktemp(f"{family}-upcycled") / "made"
        known = {"groups": "4", "layout": "mocomp", "parity": "off"}
        upcycle(str(checkpoint(family, **dict(source))), directory, UpcycleOptions(**known | options))
        return directory

    return made


@dataclass(frozen=True)
class Done:
    """A command as a shell sees it after it ended."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capfd, monkeypatch, tmp_path_factory) -> Callable[..., Done]:
    """command("convert", ...): `mocomp convert ...` in this process, which has imported everything already."""
    from mocomp.cli import mocomp

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("logs")))

    def run(*arguments: object) -> Done:
        capfd.readouterr()
        with (
            open(1, "w", closefd=False) as out, open(2, "w", closefd=False) as err,  # pytest's own are no descriptors
            redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end,
        ):  # fmt: skip
            mocomp([str(argument) for argument in arguments], prog_name="mocomp")
        return Done(int(end.value.code or 0), *capfd.readouterr())

    return run
