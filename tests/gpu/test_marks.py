"""Tests marked `gpu` or `tensorrt` run where what they need is present, and elsewhere say exactly what is missing."""

import importlib.util

import pytest

import tests.conftest
from tests.gpu import hardware

pytest_plugins = "pytester"

MARKED = """
import pytest

@pytest.mark.{mark}
def test_marked():
    assert {works}
"""


@pytest.fixture
def marked(pytester, monkeypatch):
    """marked(mark, works, needs): the outcome of a suite of one marked test, where detection says `needs`."""
    pytester.makeini("[pytest]\nmarkers =\n    gpu\n    tensorrt\n")

    def outcome(mark, works=True, needs=()):
        monkeypatch.setitem(hardware.NEEDS, mark, tuple(lambda reason=reason: reason for reason in needs))
        hardware.missing.cache_clear()
        pytester.makepyfile(MARKED.format(mark=mark, works=works))
        return pytester.runpytest_inprocess("-rs", "-p", "no:cacheprovider", plugins=[tests.conftest])

    yield outcome
    hardware.missing.cache_clear()


@pytest.mark.parametrize("mark", ["gpu", "tensorrt"])
def test_a_marked_test_runs_where_all_is_present(marked, mark):
    marked(mark, needs=(None, None)).assert_outcomes(passed=1)


def test_a_marked_test_that_runs_can_fail(marked):
    marked("gpu", works=False, needs=(None,)).assert_outcomes(failed=1)


def test_a_marked_test_is_skipped_with_all_that_is_missing(marked):
    result = marked("tensorrt", works=False, needs=("no CUDA device", None, "polygraphy is not installed"))
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*tensorrt: no CUDA device; polygraphy is not installed"])


def test_what_is_missing_is_told_by_name(monkeypatch):
    assert hardware.no_library("json") is None
    assert hardware.no_library("tensorrt_of_nobody") == "tensorrt_of_nobody is not installed"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert hardware.no_device() == "torch is not installed"
    assert hardware.no_provider() == "onnxruntime is not installed"


def test_a_provider_that_is_listed_and_does_not_load_is_missing(monkeypatch):
    """ONNX Runtime lists it wherever it was built in, and takes the CPU with a warning when its libraries are not there."""
    import onnxruntime

    class OnTheCpu:
        def get_providers(self):
            return ["CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [hardware.CUDA, "CPUExecutionProvider"])
    monkeypatch.setattr(hardware, "_session_of_nothing", OnTheCpu)
    assert hardware.no_provider() == "ONNX Runtime's CUDA provider does not load its libraries"


def test_a_provider_that_loads_is_present(monkeypatch):
    import onnxruntime

    class OnCuda:
        def get_providers(self):
            return [hardware.CUDA, "CPUExecutionProvider"]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [hardware.CUDA])
    monkeypatch.setattr(hardware, "_session_of_nothing", OnCuda)
    assert hardware.no_provider() is None
