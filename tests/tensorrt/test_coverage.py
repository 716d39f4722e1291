"""Every line of the target that speaks to TensorRT or Polygraphy is run on the recorder."""

import ast
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mocomp.deployment import Engine
from mocomp.lowering import engine, engine_runner, engine_session
from mocomp.lowering.engine_files import build_all
from mocomp.lowering.onnx_session import load
from mocomp.lowering.tensorrt_graphs import parts_in
from tests.tensorrt.test_engines import artifact, call  # noqa: F401  (a fixture)

FOREIGN = ("tensorrt", "polygraphy")
PACKAGE = Path(engine.__file__).parents[1]
EVERYTHING = {
    "strip_plan": True, "weight_streaming": True, "workspace": "1GB", "hardware_compatibility_level": "ampere_plus",
    "version_compatible": True, "tf32": True,
}  # fmt: skip


def foreign_lines(path: Path) -> set[int]:
    """The lines of functions in which a name is used that was imported from TensorRT or Polygraphy."""
    tree, names = ast.parse(path.read_text()), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {(alias.asname or alias.name) for alias in node.names if alias.name.split(".")[0] in FOREIGN}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
            names |= {alias.asname or alias.name for alias in node.names}
    return {node.lineno for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id in names}


def lines_of(work: Callable[[], object]) -> set[tuple[str, int]]:
    """The (file, line) that ran."""
    seen: set[tuple[str, int]] = set()

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(str(PACKAGE / "lowering" / "engine")):
            return None
        seen.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return seen


def test_the_target_speaks_to_tensorrt_in_two_files_alone():
    speaking = {path.name for path in PACKAGE.rglob("*.py") if foreign_lines(path)}
    assert speaking == {Path(engine.__file__).name, Path(engine_session.__file__).name}


def test_every_such_line_is_run(trt, artifact, tmp_path):  # noqa: F811
    made = artifact()
    (tmp_path / "cache").write_bytes(b"")
    chosen = Engine(timing_cache=str(tmp_path / "cache"), **EVERYTHING)

    def work() -> None:
        parts = parts_in(made)
        assert engine.missing_tensorrt() is None
        build_all(made, parts, chosen)
        engine_runner.EngineRunner(made, parts, chosen, []).run(call(load(made), 2))

    ran = lines_of(work)
    for module in (engine, engine_session):
        path = Path(module.__file__)
        missed = {line for line in foreign_lines(path) if (str(path), line) not in ran}
        except_lines = {node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ExceptHandler)}
        assert missed - except_lines == set(), path.name


def test_a_line_that_is_not_run_would_be_found(tmp_path):
    planted = tmp_path / "planted.py"
    planted.write_text("def f():\n    import tensorrt as trt\n    if False:\n        trt.BuilderFlag.FP16\n")
    assert foreign_lines(planted) == {4}


@pytest.mark.tensorrt
def test_a_real_engine_is_proven(emulated, tmp_path):
    """On hardware: the engine of digits, both profiles, and one engine more for tokens alone."""
    from mocomp.options import ConvertOptions
    from mocomp.pipeline import convert
    from tests.tensorrt.conftest import DIGITS

    for dtype in ("float32", "float16"):
        made = convert(str(DIGITS), tmp_path / dtype, ConvertOptions(target="tensorrt", engines="two", dtype=dtype))
        assert made.parity is not None and made.parity.passed
