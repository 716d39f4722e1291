"""What is written is what the recipes say, and a directory is either whole or not there."""

import errno
import resource
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mocomp.errors import BadInput
from mocomp.weights import output, recipes
from mocomp.weights.writer import ALIGNMENT, Writer


@contextmanager
def new_directory(*args, **options):
    """The path alone of what is being filled."""
    with output.new_directory(*args, **options) as made:
        yield made.path


VALUES = {
    "matrix": torch.arange(35, dtype=torch.float32).reshape(7, 5),
    "byte": torch.tensor([7], dtype=torch.uint8),
    "scalar": torch.tensor(3.5, dtype=torch.float64),
    "nothing": torch.zeros(0, 3),
    "half": torch.randn(11, 3, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
}


def read(name: str, start: int, stop: int) -> torch.Tensor:
    return VALUES[name][start:stop] if VALUES[name].dim() else VALUES[name]


def weights() -> dict[str, recipes.Recipe]:
    plain = {name: recipes.Tensor(tuple(value.shape), value.dtype, name) for name, value in VALUES.items()}
    return plain | {"turned": recipes.permute(plain["matrix"], (1, 0))}


@pytest.mark.parametrize("buffer", [1, 20, 64, 1 << 20])
def test_bytes_are_those_of_the_tensors(tmp_path, buffer):
    told: list[int] = []
    placed = Writer(read, told.append, buffer=buffer).write(tmp_path / "data", weights())
    data = (tmp_path / "data").read_bytes()
    for name, value in (VALUES | {"turned": VALUES["matrix"].T}).items():
        at = placed[name]
        assert at.offset % ALIGNMENT == 0
        assert data[at.offset : at.offset + at.length] == value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    assert sum(told) == sum(recipe.nbytes for recipe in weights().values())
    assert len(data) == placed["turned"].offset + placed["turned"].length


def test_no_more_is_read_at_once_than_the_buffer_holds(tmp_path):
    """The memory of a conversion is this buffer, so a layer's experts must not arrive as one."""
    stack = recipes.stack([recipes.Tensor((7, 5), torch.float32, "matrix")] * 16, 0)
    pieces: list[int] = []
    Writer(read, pieces.append, buffer=2 * VALUES["matrix"].nbytes).write(tmp_path / "data", {"experts": stack})
    assert pieces == [2 * VALUES["matrix"].nbytes] * 8


MARK = "report"
"""The file by which a directory of ours is known."""


def fill(directory: Path, text: str = "new") -> None:
    (directory / MARK).touch()
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


def test_the_old_one_returns_when_the_new_one_cannot_take_its_place(standing, monkeypatch):
    whole = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise KeyboardInterrupt
        return whole(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(KeyboardInterrupt), new_directory(standing, force=True, mark=MARK) as directory:
        fill(directory)
    assert content(standing) == "old" and list(standing.parent.iterdir()) == [standing]


def test_one_that_appeared_meanwhile_is_not_overwritten(tmp_path):
    """Two conversions to one place: the second to end is told, and the first one's work stands."""
    with pytest.raises(BadInput, match="exists already"), new_directory(tmp_path / "out") as second:
        fill(second)
        with new_directory(tmp_path / "out") as first:
            fill(first, "first")
    assert content(tmp_path / "out") == "first" and list(tmp_path.iterdir()) == [tmp_path / "out"]


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

        def deny(path: Path, **rest: object) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(Path, "mkdir", deny)  # root may write anywhere, so permissions alone would not do it
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
