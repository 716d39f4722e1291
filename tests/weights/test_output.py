"""A directory is either whole or not there, and what cut its making short costs only what was not written yet."""

import errno
import hashlib
import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from mocomp.errors import BadInput, Interrupted, ParityFailed
from mocomp.options import ConvertOptions
from mocomp.weights import disk, output
from mocomp.weights.identity import Command
from mocomp.weights.place import Place
from mocomp.weights.record import own_checksum


@contextmanager
def new_directory(*args, **options):
    """The path alone of what is being filled."""
    with output.new_directory(*args, **options) as made:
        yield made.path


MARK = "report"
"""The file by which a directory of ours is known."""


def fill(directory: Path, text: str = "new") -> None:
    (directory / MARK).write_text("{}")
    (directory / "sub").mkdir()
    (directory / "sub" / "file").write_text(text)


def content(directory: Path) -> str:
    return (directory / "sub" / "file").read_text()


@pytest.fixture
def standing(tmp_path):
    """An output directory of an earlier conversion."""
    with new_directory(tmp_path / "out") as directory:
        fill(directory, "old")
    return tmp_path / "out"


def test_a_directory_appears_whole(tmp_path):
    target = tmp_path / "new" / "parents" / "out"
    with new_directory(target) as directory:
        fill(directory)
        assert not target.exists() and directory.parent == target.parent  # the same disk, so that renaming is one step
    assert content(target) == "new" and [path.name for path in target.parent.iterdir()] == ["out"]


def test_one_that_exists_is_refused_before_any_work(standing):
    with pytest.raises(BadInput, match="exists already") as caught, new_directory(standing):
        pytest.fail("the work began")
    assert caught.value.where == str(standing) and "--force" in caught.value.fix
    assert content(standing) == "old"


def test_force_replaces(standing):
    with new_directory(standing, force=True, mark=MARK) as directory:
        fill(directory)
        assert content(standing) == "old"  # until the new one is whole
    assert content(standing) == "new" and list(standing.parent.iterdir()) == [standing]


def test_force_does_not_replace_what_somebody_else_wrote(tmp_path):
    """`-o ~ --force` is one slip of the finger."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis").write_text("precious")
    with pytest.raises(BadInput, match="did not write"), new_directory(tmp_path / "home", force=True, mark=MARK):
        pytest.fail("the work began")
    assert (tmp_path / "home" / "thesis").read_text() == "precious"


def test_force_replaces_what_is_empty(tmp_path):
    """As made by mkdir, or by a workflow that hands over its output directory."""
    (tmp_path / "out").mkdir()
    with new_directory(tmp_path / "out", force=True, mark=MARK) as directory:
        fill(directory)
    assert content(tmp_path / "out") == "new"


class FaultError(Exception):
    """Any fault of ours in the middle of the work."""


@pytest.mark.parametrize("error", [FaultError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("force", [False, True])
def test_nothing_is_left_behind_and_the_old_one_stays(tmp_path, standing, error, force):
    target = standing if force else tmp_path / "a" / "b" / "other"
    with pytest.raises(error), new_directory(target, force, MARK) as directory:
        fill(directory)
        raise error
    assert list(tmp_path.iterdir()) == [standing] and content(standing) == "old"


def refusing(name: str, suffix: str, error: BaseException) -> type[disk.System]:
    """A disk on which one call fails for paths that end so, and which cannot let two directories change places at once."""

    class Refusing(disk.System):
        exchange = staticmethod(lambda first, second: False)

    def call(path: Path, *rest: object) -> object:
        if str(path).endswith(suffix):
            raise error
        return getattr(disk.System, name)(path, *rest)

    setattr(Refusing, name, staticmethod(call))
    return Refusing


def test_the_old_one_returns_when_the_new_one_cannot_take_its_place(standing, monkeypatch):
    monkeypatch.setattr(disk, "system", refusing("rename", ".partial", KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt), new_directory(standing, force=True, mark=MARK) as directory:
        fill(directory)
    assert content(standing) == "old" and list(standing.parent.iterdir()) == [standing]


def test_a_disk_that_cannot_exchange_directories_has_two_renames(standing, monkeypatch):
    monkeypatch.setattr(disk, "system", refusing("rename", "nothing", KeyboardInterrupt()))
    with new_directory(standing, force=True, mark=MARK) as directory:
        fill(directory)
    assert content(standing) == "new" and list(standing.parent.iterdir()) == [standing]


def test_a_second_process_is_refused_at_once(tmp_path):
    with new_directory(tmp_path / "out") as first:
        fill(first, "first")
        with pytest.raises(BadInput, match=rf"another process is making it \({os.getpid()}\)"), new_directory(tmp_path / "out"):
            pytest.fail("the work began")
        assert content(first) == "first"
    assert content(tmp_path / "out") == "first" and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_one_that_appeared_meanwhile_is_not_overwritten(tmp_path):
    with pytest.raises(BadInput, match="exists already"), new_directory(tmp_path / "out") as directory:
        fill(directory)
        (tmp_path / "out").mkdir()
    assert list(tmp_path.iterdir()) == [tmp_path / "out"] and not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_told(tmp_path, standing, code):
    with (
        pytest.raises(BadInput, match="the disk is full") as caught,
        new_directory(standing, force=True, mark=MARK) as directory,
    ):
        fill(directory)
        raise OSError(code, "")
    assert "Free some space" in caught.value.fix
    assert content(standing) == "old" and list(tmp_path.iterdir()) == [standing]


@pytest.mark.parametrize("obstacle", ["file", "link", "broken link", "parent is a file", "name too long", "denied"])
def test_a_place_that_cannot_hold_a_directory_is_told(tmp_path, obstacle, monkeypatch):
    target = tmp_path / "out"
    if obstacle == "file":
        target.write_text("precious")
    elif obstacle in ("link", "broken link"):
        target.symlink_to(tmp_path if obstacle == "link" else tmp_path / "nowhere")
    elif obstacle == "parent is a file":
        target.write_text("precious")
        target = target / "below"
    elif obstacle == "name too long":
        target = tmp_path / ("x" * 250)
    else:
        denied = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / ".out.journal"))
        monkeypatch.setattr(disk, "system", refusing("open", ".journal", denied))  # root itself may write anywhere
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInput) as caught, new_directory(target, force=True):
        pytest.fail("the work began")
    assert str(target) in str(caught.value) and "Choose another -o DIR" in caught.value.fix
    assert sorted(tmp_path.iterdir()) == before


def test_errors_that_are_not_about_the_directory_pass_unchanged(tmp_path):
    """A missing file elsewhere is a fault of its own; blaming the output would send the user the wrong way."""
    with pytest.raises(FileNotFoundError), new_directory(tmp_path / "out"):
        (tmp_path / "elsewhere").read_text()
    assert list(tmp_path.iterdir()) == []


# what is gone on with


def command(**options: object) -> Command:
    return Command("convert", ConvertOptions(**options), ())


def cut_short(target: Path, error: BaseException, asked: Command | None = None, force: bool = False) -> None:
    """A command that ends with an error, one of whose two parts is written."""
    with output.new_directory(target, force, MARK, command=asked or command()) as made:
        disk.write_text(made.path / "data", "first....")
        made.journal.done("data", 0, 5, hashlib.sha256(b"first").hexdigest())
        disk.write_text(made.path / "other", "of no part")
        raise error


def go_on(target: Path, asked: Command | None = None, force: bool = False) -> str | None:
    """The same command to its end; what it knew of the part."""
    with output.new_directory(target, force, MARK, command=asked or command()) as made:
        known = made.journal.known("data", 0, 5)
        assert known is None or [path.name for path in made.path.iterdir()] == ["data"]
        disk.write_text(made.path / "data", "firstlast")
        disk.write_text(made.path / MARK, "{}")
    return known


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, ""), OSError(errno.EIO, ""), KeyboardInterrupt(), MemoryError()], ids=repr
)
def test_the_same_command_goes_on_where_it_was(tmp_path, error):
    with pytest.raises((BadInput, Interrupted, MemoryError)) as caught:
        cut_short(tmp_path / "out", error)
    if not isinstance(error, MemoryError):
        assert "stays" in str(caught.value) and "un the same command" in caught.value.fix
    assert {path.name for path in tmp_path.iterdir()} == {".out.partial", ".out.journal"}
    assert go_on(tmp_path / "out") == hashlib.sha256(b"first").hexdigest()
    assert (tmp_path / "out" / "data").read_text() == "firstlast" and list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_full_disk_behind_another_error_is_one(tmp_path):
    told = BadInput("cannot be written")
    told.__cause__ = OSError(errno.ENOSPC, "")
    with pytest.raises(BadInput, match="the disk is full"):
        cut_short(tmp_path / "out", told)
    assert (tmp_path / ".out.partial").exists()


@pytest.mark.parametrize("error", [BadInput("no"), ParityFailed("no"), RuntimeError("a fault of ours")], ids=repr)
def test_what_would_fail_again_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error), match=str(error)):
        cut_short(tmp_path / "out", error)
    assert list(tmp_path.iterdir()) == []


def test_another_command_over_the_same_place_is_refused(tmp_path):
    with pytest.raises(Interrupted):
        cut_short(tmp_path / "out", KeyboardInterrupt(), command(quantize="int4"))
    with pytest.raises(BadInput, match="another command was cut short there: mocomp convert --quantize int4") as caught:
        go_on(tmp_path / "out")
    assert "--force" in caught.value.fix and (tmp_path / ".out.partial" / "data").exists()
    assert go_on(tmp_path / "out", force=True) is None  # which discards it
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_force_alone_makes_no_other_command(tmp_path, standing):
    with pytest.raises(Interrupted):
        cut_short(standing, KeyboardInterrupt(), command(force=True), force=True)
    assert content(standing) == "old"
    assert go_on(standing, command(force=True), force=True) is not None
    assert (standing / "data").read_text() == "firstlast" and list(tmp_path.iterdir()) == [standing]


def test_a_command_that_cannot_go_on_discards_what_it_finds(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "data").write_text("of a process that was killed")
    (tmp_path / ".out.journal").write_text('{"belongs": null}\n')
    with output.new_directory(tmp_path / "out") as made:
        assert list(made.path.iterdir()) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_one_that_died_before_it_put_things_in_order_is_mended(tmp_path, standing, monkeypatch):
    """Right after the two directories changed places: the old output lies where the new one was made."""
    monkeypatch.setattr(Place, "clear", lambda place: None)
    assert go_on(standing, force=True) is None
    assert (tmp_path / ".out.partial" / "sub").exists() and (tmp_path / ".out.journal").exists()
    monkeypatch.undo()
    with pytest.raises(BadInput, match="exists already"):
        go_on(standing)
    assert list(tmp_path.iterdir()) == [standing] and (standing / "data").exists()


def test_one_that_died_between_two_renames_is_mended(tmp_path, standing):
    standing.rename(tmp_path / ".out.replaced")
    (tmp_path / ".out.journal").write_text('{"belongs": null}\n')
    with pytest.raises(BadInput, match="exists already"):
        go_on(standing)
    assert list(tmp_path.iterdir()) == [standing] and content(standing) == "old"


def test_the_report_has_the_checksums_of_all_files(tmp_path):
    go_on(tmp_path / "out")
    data = json.loads((tmp_path / "out" / MARK).read_text())
    assert data["files"] == {"data": {"size": 9, "parts": [[0, 9, hashlib.sha256(b"firstlast").hexdigest()]]}}
    assert data["sha256"] == own_checksum(data) != own_checksum(data | {"more": 1})
