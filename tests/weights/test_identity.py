"""Which files a command is known by: those that it reads, and no others."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from mocomp import options
from mocomp.commands.prune import PruneOptions
from mocomp.errors import Interrupted
from mocomp.options import ConvertOptions
from mocomp.weights import disk, output
from mocomp.weights.identity import PATHS, Command
from mocomp.weights.journal import read_journal

SHA = hashlib.sha256(b"first").hexdigest()


def command(*sources: Path, **given: Any) -> Command:
    return Command("convert", ConvertOptions(**given), tuple(map(str, sources)))


def test_an_output_inside_what_is_read_is_gone_on_with(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for known in (None, SHA):
        with pytest.raises(Interrupted), output.new_directory(tmp_path / "out", command=command(tmp_path)) as made:
            assert made.journal.known("data", 0, 5) == known
            disk.write_text(made.path / "data", "first")
            made.journal.done("data", 0, 5, SHA)
            raise KeyboardInterrupt


def test_a_directory_that_is_called_as_a_value_is_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "file").write_text("x")
    assert command(target="onnx").identity()["inputs"] == {}
    assert list(command(calibration="onnx/file").identity()["inputs"]) == [str(tmp_path / "onnx" / "file")]


NO_PATHS = {
    "algorithm", "budget", "by", "copies", "depth", "device", "dtype", "dynamic", "engines", "experts", "few_tokens", "gate",
    "gpu", "groups", "hardware_compatibility_level", "layers", "layout", "method", "mixture", "modality", "old_group",
    "otherwise", "outputs", "parity", "print_after", "profiles", "quantize", "quantize_dense", "reach", "rest", "router",
    "router_init", "shard_size", "target", "target_size", "task", "tensorrt", "timing_cache", "tune", "weights", "workspace",
}  # fmt: skip
"""Options of texts that name no file which is read; the timing cache is one that the command itself changes."""


def test_every_option_is_known_to_name_files_or_not():
    kinds = [ConvertOptions, PruneOptions, *(made for made in vars(options).values() if _makes_a_checkpoint(made))]
    texts = {field.name for kind in kinds for field in dataclasses.fields(kind) if isinstance(field.default, (str, tuple))}
    assert texts == NO_PATHS | set(PATHS) and not NO_PATHS & set(PATHS)


def _makes_a_checkpoint(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, options.CheckpointOptions)


def test_a_journal_of_no_numbers_tells_of_nothing(tmp_path):
    odd = [{"file": 1}, {"offset": -1}, {"length": "5"}, {"length": 1 << 70}, {"offset": True}]
    lines = [{"file": "data", "offset": 0, "length": 5, "sha256": SHA} | change for change in odd]
    (tmp_path / "log").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_journal(tmp_path / "log").parts == []
