"""What changes the disk is in one module, and does there what it says, whatever the system takes at once."""

import ast
import errno
import os
from pathlib import Path

import pytest

import mocomp
from mocomp.weights import disk

PACKAGE = Path(mocomp.__file__).parent
ELSEWHERE = {
    "terminal.py": "the log of what libraries say, in the folder for temporary files",
    "outcome.py": "the same log, which goes away",
    "bench/prepared.py": "inputs for the processes of a benchmark, in a temporary folder",
    "bench/subjects.py": "what a peer exports, in a temporary folder",
    "bench/exporter.py": "the same",
    "bench/worker.py": "answers on a pipe",
    "calibration/given.py": "one text, in a temporary folder",
    "commands/bench.py": "a temporary folder",
    "commands/check.py": "a graph to look at, in a temporary folder",
    "commands/quantize.py": "artifacts to time, in a temporary folder",
    "commands/zoo.py": "artifacts that nobody keeps, in a temporary folder",
    "lowering/engine_runner.py": "an engine that nobody keeps, in a temporary folder",
    "lowering/host_copies.py": "a profile, in a temporary folder",
    "weights/disk.py": "the module itself",
}
CHANGES = {
    "write_text", "write_bytes", "touch", "unlink", "rmdir", "mkdir", "makedirs", "rmtree", "copyfile", "copy2", "copytree",
    "move", "symlink_to", "hardlink_to", "symlink", "link", "rename", "pwrite", "ftruncate", "mkstemp", "mkdtemp", "tofile",
    "TemporaryDirectory", "NamedTemporaryFile", "savez", "save_file", "save_pretrained",
}  # fmt: skip
"""Calls of the standard library, numpy and the libraries of models that write, name or remove files."""


def changes(source: str) -> list[str]:
    """The calls in a module that change the disk, but for those of `disk`."""
    found = []
    for call in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]:
        whole = ast.unparse(call.func)
        name = whole.rpartition(".")[2]
        texts = [arg.value for arg in [*call.args, *(k.value for k in call.keywords)] if isinstance(arg, ast.Constant)]
        writes = name in ("open", "fdopen") and any(isinstance(t, str) and set(t) & set("wax+") and len(t) < 4 for t in texts)
        moves = name == "replace" and len(call.args) == 1 and not call.keywords and not whole.startswith("dataclasses.")
        if (name in CHANGES or writes or moves) and not whole.startswith("disk."):
            found.append(whole)
    return found


def test_no_other_module_changes_the_disk():
    paths = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
    assert set(ELSEWHERE) <= set(paths)
    assert {name: found for name, path in paths.items() if name not in ELSEWHERE and (found := changes(path.read_text()))} == {}


@pytest.mark.parametrize(
    "line", ["p.write_text('x')", "open(p, 'wb')", "p.open('a')", "os.rename(a, b)", "a.replace(b)", "shutil.copyfile(a, b)"]
)
def test_a_module_that_did_would_be_seen(line):
    assert changes(line) and not changes("disk.rename(a, b); open(p); t.replace('a', 'b'); p.open('rb')")


def test_bytes_come_to_their_place_when_the_system_takes_few_at_a_time(tmp_path, monkeypatch):
    class Slow(disk.System):
        pwrite = staticmethod(lambda handle, data, offset: os.pwrite(handle, data[:3], offset))

    monkeypatch.setattr(disk, "system", Slow)
    with disk.File(tmp_path / "file") as file:
        assert file.write_at(5, b"0123456789") == 15
    assert (tmp_path / "file").read_bytes() == bytes(5) + b"0123456789"


def test_a_file_that_is_there_is_kept_but_for_what_is_written(tmp_path):
    (tmp_path / "file").write_bytes(b"abcdef")
    with disk.File(tmp_path / "file") as file:
        file.write_at(2, b"XY")
        file.truncate(5)
        file.close()
    assert (tmp_path / "file").read_bytes() == b"abXYe"
    disk.write_text(tmp_path / "file", "é")
    assert (tmp_path / "file").read_bytes() == "é".encode()


@pytest.mark.parametrize("call", ["pwrite", "sync", "rename"])
def test_an_older_file_stays_until_the_new_one_is_whole(tmp_path, monkeypatch, call):
    (tmp_path / "file").write_text("old")

    def fail(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, "system", type("Full", (disk.System,), {call: staticmethod(fail)}))
    with pytest.raises(OSError, match="full"):
        disk.replace_text(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "old"
    monkeypatch.undo()
    disk.replace_text(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_two_directories_change_places(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not disk.exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange directories")
    assert (tmp_path / "a" / "b").exists() and (tmp_path / "b" / "a").exists()


def test_what_cannot_have_a_second_name_is_copied(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(os.urandom(disk.STEP + 7))

    def refuse(*arguments: object) -> None:
        raise OSError(errno.EXDEV, "another disk")

    monkeypatch.setattr(disk, "system", type("TwoDisks", (disk.System,), {"link": staticmethod(refuse)}))
    disk.link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes() and (tmp_path / "b").stat().st_nlink == 1
