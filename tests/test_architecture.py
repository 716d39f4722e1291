"""The rules of the code base that a machine can hold: who may import whom, what costs nothing, how large a file may be."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import mocomp

PACKAGE = Path(mocomp.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
LAYERS = (
    "errors", "registry", "terminal", "settings", "resources", "threads", "executors", "deployment", "capability",
    "weights", "quant", "ir", "routers", "scorers", "experts", "plans", "passes", "models", "nn", "fill",
    "lowering", "targets", "verify", "tuning", "report", "options", "calibration", "placement", "bench", "opening",
    "quantising", "pipeline", "checkpoints", "zoo", "commands", "outcome", "cli", "__main__",
)  # fmt: skip
"""Each may import those before it and itself. `mocomp` itself, from which all is reachable, imports lazily."""
HEAVY = ("torch", "onnxruntime", "transformers", "onnx", "onnxscript", "onnx_ir", "numpy")


def tree(path: Path) -> ast.Module:
    return ast.parse((PACKAGE / path).read_text())


def layer(dotted: str) -> str:
    """`mocomp.weights.recipes` -> `weights`; a name that `mocomp` itself defines belongs to no layer."""
    return dotted.split(".")[1] if "." in dotted else ""


def imported(path: Path) -> set[str]:
    """The modules of mocomp that a file imports, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "mocomp" else {str(node.module)}
    return {name for name in found if name.split(".")[0] == "mocomp"}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_flow_one_way(path):
    own = path.parts[0].removesuffix(".py")
    if own == "__init__":
        assert imported(path) == set()
        return
    allowed = {*LAYERS[: LAYERS.index(own) + 1], "__version__", ""}
    assert {layer(name) for name in imported(path)} <= allowed


def test_every_layer_is_on_disk():
    assert {path.parts[0].removesuffix(".py") for path in FILES} == {*LAYERS, "__init__"}


@pytest.mark.parametrize("package", ["routers", "experts", "targets"])
def test_extensions_do_not_know_each_other(package):
    """Adding a file changes no other, and removing one breaks none."""
    for path in FILES:
        if path.parts[0] == package and path.name != "__init__.py":
            assert not {name for name in imported(path) if name.startswith(f"mocomp.{package}.")}


def modules_after(statement: str) -> list[str]:
    """The heavy modules that a fresh interpreter has imported after a statement."""
    script = f"""
import sys
try:
    {statement}
except SystemExit:
    pass
print(*(name for name in {HEAVY} if name in sys.modules), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return done.stderr.split()


def test_what_is_heavy_would_be_seen():
    assert modules_after("import numpy") == ["numpy"]


@pytest.mark.parametrize("arguments", [["--help"], ["convert", "--help"], ["upcycle", "--help"], ["--version"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments):
    assert modules_after(f"import mocomp.cli; mocomp.cli.mocomp({arguments})") == []


def test_the_package_imports_nothing_heavy():
    assert modules_after("import mocomp; mocomp.ConvertOptions(), mocomp.MocompError; dir(mocomp)") == []


def test_public_names_are_few_and_there():
    assert len(mocomp.__all__) <= 10 and sorted(mocomp.__all__) == mocomp.__all__
    assert all(inspect.isclass(getattr(mocomp, name)) or callable(getattr(mocomp, name)) for name in mocomp.__all__)
    with pytest.raises(AttributeError, match="no attribute 'transmogrify'"):
        mocomp.transmogrify  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=str)
def test_files_are_short_and_named_for_what_is_in_them(path):
    assert len((PACKAGE / path).read_text().splitlines()) <= 300
    assert not {"utils", "util", "helpers", "common", "misc"} & {part.removesuffix(".py") for part in path.parts}


@pytest.mark.parametrize("path", FILES, ids=str)
def test_everything_public_is_documented(path):
    module = tree(path)
    undocumented = [] if ast.get_docstring(module) else ["the module"]
    for node in module.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_") and not ast.get_docstring(node):
            undocumented.append(node.name)
    assert undocumented == []


def test_every_error_has_an_exit_code_of_its_own():
    from mocomp import errors

    kinds = [kind for kind in vars(errors).values() if inspect.isclass(kind)]
    codes = {kind.__name__: kind.exit_code for kind in kinds}
    expected = {"ParityFailed": 1, "Usage": 2, "Unsupported": 3, "MissingDependency": 4, "BadInput": 5, "Interrupted": 130}
    assert codes == expected | {"MocompError": 70, "OutOfReach": errors.BadInput.exit_code}  # which is a kind of that


def test_options_of_the_command_are_options_of_the_file():
    """One name for one thing, and no option that nothing reads."""
    from dataclasses import fields

    from mocomp.cli import convert
    from mocomp.options import ConvertOptions
    from mocomp.resources import Resources

    files = {field.name for field in (*fields(ConvertOptions), *fields(Resources))}
    here = {"source", "output", "config", "time_passes", "as_json"}
    assert {parameter.name for parameter in convert.params} - here == files
