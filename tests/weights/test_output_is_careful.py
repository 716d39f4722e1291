"""What making an output must not touch: what it reads, what others wrote, and what is worth keeping."""

import errno
import hashlib
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mocomp import options
from mocomp.errors import BadInput, Interrupted, OutOfReach
from mocomp.options import ConvertOptions
from mocomp.weights import disk, output
from mocomp.weights.identity import Command
from mocomp.weights.place import Place

MARK = "report"
SHA = hashlib.sha256(b"first").hexdigest()


def command(*sources: Path, **given: Any) -> Command:
    return Command("convert", ConvertOptions(**given), tuple(map(str, sources)))


def make(target: Path, asked: Command | None = None, force: bool = False, error: BaseException | None = None) -> str | None:
    """A whole output, or one that is cut short with a part of it written; what was known of that part before."""
    with output.new_directory(target, force, MARK, command=asked or command()) as made:
        known = made.journal.known("data", 0, 5)
        disk.write_text(made.path / "data", "first")
        made.journal.done("data", 0, 5, SHA)
        if error is not None:
            raise error
        disk.write_text(made.path / MARK, "{}")
    return known


@pytest.fixture
def standing(tmp_path) -> Path:
    make(tmp_path / "out")
    return tmp_path / "out"


def content(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# what it reads, and what others wrote


@pytest.mark.parametrize("way", ["itself", "below", "by a link", "an option", "a name=path"])
def test_what_is_read_is_never_replaced(tmp_path, standing, way):
    inside = standing / "mine"
    inside.mkdir()
    (inside / "rows.jsonl").write_text("{}")
    (tmp_path / "link").symlink_to(inside)
    asked = {
        "itself": command(standing),
        "below": command(inside),
        "by a link": command(tmp_path / "link"),
        "an option": command(calibration=str(inside / "rows.jsonl")),
        "a name=path": Command("merge", options.MergeOptions(expert=(f"text={inside}",)), ()),
    }[way]
    before = content(tmp_path)
    with pytest.raises(BadInput, match="is read, and lies in it"):
        make(standing, asked, force=True)
    assert content(tmp_path) == before


def test_files_of_others_are_not_replaced(standing):
    (standing / "bench.json").write_text("{}")  # of ours, written later
    make(standing, force=True)
    (standing / "NOTES.txt").write_text("precious")
    with pytest.raises(BadInput, match=r"holds NOTES\.txt, which mocomp did not write"):
        make(standing, force=True)
    assert (standing / "NOTES.txt").read_text() == "precious" and (standing / "data").exists()


def test_one_that_comes_while_it_is_made_stays_too(standing):
    with (
        pytest.raises(BadInput, match=r"holds NOTES\.txt"),
        output.new_directory(standing, True, MARK, command=command()) as made,
    ):
        disk.write_text(made.path / MARK, "{}")
        (standing / "NOTES.txt").write_text("precious")
    assert (standing / "NOTES.txt").exists()


def test_a_report_without_a_list_of_files_is_replaced_and_a_damaged_one_is_not(standing):
    (standing / MARK).write_text("{}")
    (standing / "other").write_text("of an older version")
    make(standing, force=True)
    assert not (standing / "other").exists()
    (standing / MARK).write_text("{")
    with pytest.raises(BadInput, match="its report is damaged"):
        make(standing, force=True)


# names beside it


@pytest.mark.parametrize("name", [".out.partial", ".out.journal", ".out.replaced"])
def test_links_beside_it_are_not_followed(tmp_path, name):
    victim = tmp_path / "victim"
    victim.mkdir()
    (victim / "thesis").write_text("precious")
    (tmp_path / name).symlink_to(victim / "thesis" if "journal" in name else victim)
    with pytest.raises(BadInput, match=f"{name} beside it is a link"):
        make(tmp_path / "out", force=True)
    assert (victim / "thesis").read_text() == "precious"


def test_a_link_that_comes_in_the_last_moment_is_not_followed(tmp_path, monkeypatch):
    (tmp_path / "thesis").write_text("precious")
    (tmp_path / ".out.journal").symlink_to(tmp_path / "thesis")
    monkeypatch.setattr(Place, "mend", lambda place: None)
    with pytest.raises(BadInput, match="may not be written"):
        make(tmp_path / "out")
    assert (tmp_path / "thesis").read_text() == "precious"


@pytest.mark.parametrize("journal", [None, "", "somebody else's", '{"a": 1}\n'])
@pytest.mark.parametrize("name", ["partial", "replaced"])
def test_a_directory_that_no_journal_of_ours_tells_of_stays(tmp_path, journal, name):
    (tmp_path / f".out.{name}").mkdir()
    (tmp_path / f".out.{name}" / "thesis").write_text("precious")
    if journal is not None:
        (tmp_path / ".out.journal").write_text(journal)
    before = content(tmp_path)
    with pytest.raises(BadInput, match="beside it") as caught:
        make(tmp_path / "out", force=True)
    assert content(tmp_path) == before and "Remove .out." in caught.value.fix


def test_an_empty_one_is_taken(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.journal").write_text('{"belo')  # as far as a process came
    make(tmp_path / "out")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.parametrize("kind", ["link", "second name", "behind a link"])
def test_parts_of_a_file_that_is_elsewhere_too_are_not_kept(tmp_path, kind):
    """What a journal tells of them may be so, but to go on would write to that other place."""
    with pytest.raises(Interrupted):
        make(tmp_path / "out", error=KeyboardInterrupt())
    victim, file = tmp_path / "victim", tmp_path / ".out.partial" / "data"
    if kind == "behind a link":
        log = tmp_path / ".out.journal"
        log.write_text(log.read_text().replace('"data"', '"sub/data"'))
        victim.mkdir()
        file.rename(victim / "data")
        (tmp_path / ".out.partial" / "sub").symlink_to(victim)
    else:
        file.rename(victim)
        os.link(victim, file) if kind == "second name" else file.symlink_to(victim)
    assert make(tmp_path / "out") is None
    assert (victim / "data" if victim.is_dir() else victim).read_text() == "first"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", MARK]
    assert (tmp_path / "out" / "data").stat().st_nlink == 1


@pytest.mark.parametrize("write", ["write_bytes", "copy"])
def test_nothing_is_written_through_a_second_name(tmp_path, write):
    (tmp_path / "thesis").write_bytes(b"precious")
    (tmp_path / "new").write_bytes(b"new")
    os.link(tmp_path / "thesis", tmp_path / "name")
    if write == "copy":
        disk.copy(tmp_path / "new", tmp_path / "name")
    else:
        disk.write_bytes(tmp_path / "name", b"new")
    assert (tmp_path / "thesis").read_bytes() == b"precious" and (tmp_path / "name").read_bytes() == b"new"


# what is worth keeping


class Unreachable:
    """An executor whose cluster does not answer, when it is asked for the first time or when it is to run."""

    def __init__(self, at: str):
        self.at = at

    def _fail(self) -> None:
        raise OutOfReach("no cluster answers", where="host:1", fix="Start one.")

    def start(self) -> None:
        if self.at == "start":
            self._fail()

    def run(self, tasks):
        self._fail()

    def close(self) -> None:
        pass


@pytest.mark.parametrize("at", ["start", "run"])
def test_a_cluster_that_does_not_answer_costs_nothing(tmp_path, monkeypatch, at):
    with pytest.raises(Interrupted):
        make(tmp_path / "out", error=KeyboardInterrupt())
    monkeypatch.setattr(output, "open_executor", lambda resources: Unreachable(at))
    with pytest.raises(OutOfReach, match="no cluster answers; what is written stays") as caught:
        make(tmp_path / "out")
    assert caught.value.fix.startswith("Start one. Then run the same command") and caught.value.exit_code == 5
    monkeypatch.undo()
    assert make(tmp_path / "out") == SHA


def test_a_worker_that_died_costs_only_what_it_did(tmp_path):
    with pytest.raises(OutOfReach, match="a worker died; what is written stays"):
        make(tmp_path / "out", error=OutOfReach("a worker died"))
    assert make(tmp_path / "out") == SHA


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "")], ids=repr)
def test_a_check_that_is_cut_short_costs_nothing(tmp_path, monkeypatch, error):
    with pytest.raises(Interrupted):
        make(tmp_path / "out", error=KeyboardInterrupt())

    def fail(*given):
        raise error

    monkeypatch.setattr(output, "intact", fail)
    with pytest.raises((Interrupted, BadInput), match="what is written stays"):
        make(tmp_path / "out")
    monkeypatch.undo()
    assert make(tmp_path / "out") == SHA


def test_where_nothing_is_as_it_was_nothing_is_kept(tmp_path):
    with pytest.raises(Interrupted):
        make(tmp_path / "out", error=KeyboardInterrupt())
    (tmp_path / ".out.partial" / "data").write_text("other")
    with pytest.raises(KeyboardInterrupt), output.new_directory(tmp_path / "out", command=command()):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_does_not_fit_is_told(tmp_path):
    """A file that the system refuses to let grow, as a quota does, in a process of its own."""
    script = f"""
        import resource, signal, torch
        from pathlib import Path
        from mocomp.errors import BadInput
        from mocomp.weights import output, recipes
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        weight = recipes.literal(torch.zeros(64, 1024))
        try:
            with output.new_directory(Path({str(tmp_path / "out")!r})) as made:
                made.writer(None).write(made.path / "data", {{"w": weight}})
        except BadInput as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True)
    assert "larger than" in done.stdout and str(tmp_path / "out") in done.stdout
    assert list(tmp_path.iterdir()) == [] and resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
