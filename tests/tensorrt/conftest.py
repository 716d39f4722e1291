"""What these tests share: the recorder in the place of TensorRT, and artifacts converted without it, each made once."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from mocomp.options import ConvertOptions
from tests.conftest import Converted
from tests.tensorrt.recorder import Recorder, recorded

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "checkpoint"


@pytest.fixture
def trt() -> Iterator[Recorder]:
    """`import tensorrt` is the recorder."""
    with recorded() as recorder:
        yield recorder


@pytest.fixture(scope="session")
def emulated(tmp_path_factory, checkpoint) -> Callable[..., Converted]:
    """emulated(family, **options): the artifact for TensorRT of a tiny checkpoint, or of `digits`, proven on the CPU."""
    from mocomp.pipeline import convert

    @cache
    def made(family: str, **options) -> Converted:
        source = DIGITS if family == "digits" else checkpoint(family)
        directory = tmp_path_factory.mktemp(f"{family}-tensorrt") / "artifact"
        chosen = ConvertOptions(target="tensorrt", emulate=True, **options)
        return Converted(source, directory, convert(str(source), directory, chosen))

    return made
